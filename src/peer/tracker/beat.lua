-- A heartbeat. ARGV: node, its heartbeat, ms that it lasts, what the node says of itself.
local known, alive = call('HEXISTS', base .. 'nodes', me), call('EXISTS', base .. 'node:' .. me)
call('SET', base .. 'node:' .. me, ARGV[2], 'PX', ARGV[3])
call('HSET', base .. 'nodes', me, string.format('%.0f', now) .. '|' .. ARGV[4])
call('EXPIRE', base .. 'nodes', 86400)
