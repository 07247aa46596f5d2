-- A node does not hold these chunks of a blob (any more); without chunks: nothing of it.
-- ARGV: node that asks, blob, node that is meant, chunks.
local oid, node = ARGV[2], ARGV[3]
local bits, gone = base .. 'p:' .. oid .. ':' .. node, #ARGV == 3
local size = call('STRLEN', bits)
for n = 4, #ARGV do
  -- Never longer for what is not in it.
  if tonumber(ARGV[n]) < size * 8 then call('SETBIT', bits, ARGV[n], 0) end
end
if gone or call('BITCOUNT', bits) == 0 then
  call('UNLINK', bits)
  call('ZREM', base .. 'who:' .. oid, node)
end
return 1
