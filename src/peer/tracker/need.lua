-- What nodes want that may not call the Hub. ARGV: node, 'put', ms, blob, size, chunks | 'take', how many blobs.
local MOST, needs = 4096, base .. 'needs'
if ARGV[2] == 'put' then
  if call('ZCARD', needs) >= MOST then return 0 end
  local key, ms = base .. 'need:' .. ARGV[4], ARGV[3]
  call('SADD', key, unpack(ARGV, 6))
  call('PEXPIRE', key, ms)
  call('ZADD', needs, now, ARGV[4] .. '|' .. ARGV[5])
  call('PEXPIRE', needs, ms)
  return 1
end
local answer = {}
for n, name in ipairs(call('ZPOPMIN', needs, ARGV[3])) do
  if n % 2 == 1 then
    local oid, size = string.match(name, '^(%x+)|(%d+)$')
    local key = base .. 'need:' .. oid
    local some = call('SPOP', key, 1000)
    if #some > 0 then answer[#answer + 1] = { oid, size, unpack(some) } end
    -- A blob of which very many are wanted comes in parts.
    if call('EXISTS', key) == 1 then call('ZADD', needs, now, name) end
  end
end
return answer
