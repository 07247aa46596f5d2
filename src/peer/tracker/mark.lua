-- Who is blocked, and who was added by hand. ARGV: node, what to do, and
--   'add' key, name, ms, text | 'remove' key, name
--   'report' the node that is reported, how many reporters it takes, ms within which, ms of the block, why
local MOST = 1024
local function put(key, name, ms, text)
  if call('HEXISTS', key, name) == 0 and call('HLEN', key) >= MOST then return 0 end
  call('HSET', key, name, string.format('%.0f', now + ms) .. '|' .. text)
  -- As long as the longest of them.
  local left = call('PTTL', key)
  if left < 0 or left < tonumber(ms) then call('PEXPIRE', key, ms) end
  return 1
end
if ARGV[2] == 'add' then return put(base .. ARGV[3], ARGV[4], ARGV[5], ARGV[6]) end
if ARGV[2] == 'remove' then return call('HDEL', base .. ARGV[3], ARGV[4]) end
local key, within = base .. 'rep:' .. ARGV[3], tonumber(ARGV[5])
call('ZADD', key, now, me)
call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now - within))
if call('ZCARD', key) > 64 then call('ZPOPMIN', key) end
call('PEXPIRE', key, within)
if call('ZCARD', key) < tonumber(ARGV[4]) then return 0 end
call('UNLINK', key)
return put(base .. 'block', ARGV[3], ARGV[6], ARGV[7])
