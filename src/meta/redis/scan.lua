-- Entries of an ordered map: id, field, value, and so on.
-- KEYS[1]: the tag before all keys of the volume. ARGV: map, the id after which to begin, limit.
local found = redis.call('ZRANGEBYSCORE', KEYS[1] .. '#' .. ARGV[1], '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local entries, key = {}, KEYS[1] .. ':' .. ARGV[1]
for from = 1, #found, 2000 do
  local fields = {}
  for n = from, math.min(from + 1998, #found), 2 do fields[#fields + 1] = found[n] end
  local values = redis.call('HMGET', key, unpack(fields))
  for n, field in ipairs(fields) do
    local at = #entries
    entries[at + 1], entries[at + 2], entries[at + 3] = found[from + 2 * n - 1], field, values[n]
  end
end
return entries
