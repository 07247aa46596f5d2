-- Nobody listens where a node should be. If its heartbeat is overdue too, it is dead: one that lives says so again soon.
-- ARGV: who asks, the node, ms that a heartbeat lasts, ms after which the next is overdue.
local key = base .. 'node:' .. ARGV[2]
local left = call('PTTL', key)
if left >= 0 and tonumber(ARGV[3]) - left < tonumber(ARGV[4]) then return 0 end
return call('UNLINK', key)
