-- A value that begins with an inode number, and fields of that inode's map.
-- KEYS[1]: the tag before all keys of the volume. ARGV: map, field, fields of the inode's map.
local value = redis.call('HGET', KEYS[1] .. ':' .. ARGV[1], ARGV[2])
if not value then return false end
if #value < 8 then return redis.error_reply('HFSHORT value is too short to follow') end
local reply = { value }
local key = KEYS[1] .. ':i' .. string.format('%.0f', (struct.unpack('>I8', value)))
for from = 3, #ARGV, 1000 do
  local some = redis.call('HMGET', key, unpack(ARGV, from, math.min(from + 999, #ARGV)))
  for _, field in ipairs(some) do reply[#reply + 1] = field end
end
return reply
