-- Begins an export, unless another one is on. KEYS[1]: the tag before all keys of the volume. ARGV: token, ms to live.
local base, token = KEYS[1], ARGV[1]
local holder = redis.call('GET', base .. '@export')
if holder and not string.find(holder, token, 1, true) then return 0 end
redis.call('SET', base .. '@export', token .. ':0', 'PX', ARGV[2])
redis.call('UNLINK', base .. '@touched', base .. '@touched.batch')
return 1
