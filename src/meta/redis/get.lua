-- Values of several maps at one moment.
-- KEYS[1]: the tag before all keys of the volume. ARGV: map, number of fields, fields, and so on.
-- No more than 1,000 at a time: Lua's stack is short.
local values, at, last = {}, 1, #ARGV
while at <= last do
  local key, count = KEYS[1] .. ':' .. ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  if count == 1 then
    values[#values + 1] = redis.call('HGET', key, ARGV[at])
  else
    for from = at, at + count - 1, 1000 do
      local some = redis.call('HMGET', key, unpack(ARGV, from, math.min(from + 999, at + count - 1)))
      for _, value in ipairs(some) do values[#values + 1] = value end
    end
  end
  at = at + count
end
return values
