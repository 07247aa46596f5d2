-- Whole maps of an export. KEYS[1]: the tag before all keys of the volume. ARGV: token, ms to live, the most fields that a
-- map may have here, maps.
-- Answers the number of touched places, then for each map its fields and values, or 0 if it has more.
local base, token, most = KEYS[1], ARGV[1], tonumber(ARGV[3])
local holder = redis.call('GET', base .. '@export')
if not holder or not string.find(holder, token, 1, true) then return redis.error_reply('HFGONE export was given up') end
redis.call('PEXPIRE', base .. '@export', ARGV[2])
local answer = { redis.call('SCARD', base .. '@touched') }
for n = 4, #ARGV do
  local key, rows = base .. ':' .. ARGV[n], {}
  if redis.call('HLEN', key) > most then
    rows = 0
  elseif string.sub(ARGV[n], -1) ~= '/' then
    rows = redis.call('HGETALL', key)
  else
    local fields = redis.call('ZRANGE', base .. '#' .. ARGV[n], 0, -1)
    local values = #fields > 0 and redis.call('HMGET', key, unpack(fields)) or {}
    for at, field in ipairs(fields) do
      if values[at] then
        rows[#rows + 1] = field
        rows[#rows + 1] = values[at]
      end
    end
  end
  answer[#answer + 1] = rows
end
return answer
