-- Reads again what commits touched during an export, and ends it if that was all: at this moment everything has been read.
-- KEYS[1]: the tag before all keys of the volume. ARGV: token, ms to live, number of this round, the most places to read,
-- the most fields that a map may have here, 1 if everything else was read before.
-- Answers 1 if that was all else 0, the places left, and for each place read: map, then field and value (or nothing if it
-- is absent), or the rows of the whole map after it was dropped, or 0 if it has more.
local base, token, round, most = KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[5])
local flag, touched, batch = base .. '@export', base .. '@touched', base .. '@touched.batch'
local holder = redis.call('GET', flag)
if not holder or not string.find(holder, token, 1, true) then return redis.error_reply('HFGONE export was given up') end

local places
if holder == token .. ':' .. round then
  -- The reply of this round was lost: the same places once more.
  places = redis.call('SMEMBERS', batch)
else
  redis.call('UNLINK', batch)
  places = redis.call('SPOP', touched, ARGV[4])
  for from = 1, #places, 1000 do
    redis.call('SADD', batch, unpack(places, from, math.min(from + 999, #places)))
  end
  redis.call('PEXPIRE', batch, 600000)
end
redis.call('SET', flag, token .. ':' .. round, 'PX', ARGV[2])

local read, large = {}, false
for _, place in ipairs(places) do
  if string.sub(place, 1, 1) == 'm' then
    local map = string.sub(place, 2)
    local key, rows = base .. ':' .. map, {}
    if redis.call('HLEN', key) > most then
      rows, large = 0, true
    elseif string.sub(map, -1) ~= '/' then
      rows = redis.call('HGETALL', key)
    else
      local fields = redis.call('ZRANGE', base .. '#' .. map, 0, -1)
      local values = #fields > 0 and redis.call('HMGET', key, unpack(fields)) or {}
      for at, field in ipairs(fields) do
        if values[at] then
          rows[#rows + 1] = field
          rows[#rows + 1] = values[at]
        end
      end
    end
    read[#read + 1] = { map, rows }
  else
    local length, rest = string.match(place, '^f(%d+):()')
    local map = string.sub(place, rest, rest + length - 1)
    local field = string.sub(place, rest + length)
    read[#read + 1] = { map, field, redis.call('HGET', base .. ':' .. map, field) or nil }
  end
end
local left = redis.call('SCARD', touched)
local done = left == 0 and not large and ARGV[6] == '1'
if done then redis.call('UNLINK', flag, touched, batch) end
return { done and 1 or 0, left, read }
