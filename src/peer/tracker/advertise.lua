-- All that this node holds of some blobs, beside what it has told already.
-- ARGV: node, seconds that possession lasts, blob and bitmap of each.
local lasts = tonumber(ARGV[2])
for n = 3, #ARGV, 2 do
  local bits, more = base .. 'p:' .. ARGV[n] .. ':' .. me, base .. 'p:more:' .. me
  call('SET', more, ARGV[n + 1], 'EX', 60)
  call('BITOP', 'OR', bits, bits, more)
  call('UNLINK', more)
  call('EXPIRE', bits, lasts)
  told(ARGV[n], lasts)
end
return 1
