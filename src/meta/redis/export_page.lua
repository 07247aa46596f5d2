-- A page of one large map of an export. KEYS[1]: the tag before all keys of the volume. ARGV: token, ms to live, map, where
-- to go on ('0' at first), limit.
-- Answers the number of touched places, where to go on ('0': that was all), fields and values.
local base, token, map, from = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
local holder = redis.call('GET', base .. '@export')
if not holder or not string.find(holder, token, 1, true) then return redis.error_reply('HFGONE export was given up') end
redis.call('PEXPIRE', base .. '@export', ARGV[2])
local touched, key = redis.call('SCARD', base .. '@touched'), base .. ':' .. map
if string.sub(map, -1) ~= '/' then
  local page = redis.call('HSCAN', key, from, 'COUNT', ARGV[5])
  return { touched, page[1], page[2] }
end
local found = redis.call('ZRANGEBYSCORE', base .. '#' .. map, '(' .. from, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[5])
local fields, rows, last = {}, {}, '0'
for n = 1, #found, 2 do
  fields[#fields + 1] = found[n]
  last = found[n + 1]
end
if #fields > 0 then
  local values = redis.call('HMGET', key, unpack(fields))
  for at, field in ipairs(fields) do
    if values[at] then
      rows[#rows + 1] = field
      rows[#rows + 1] = values[at]
    end
  end
end
return { touched, #fields < tonumber(ARGV[5]) and '0' or last, rows }
