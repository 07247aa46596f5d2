-- Gives an export up. KEYS[1]: the tag before all keys of the volume. ARGV: token.
local base = KEYS[1]
local holder = redis.call('GET', base .. '@export')
if holder and string.find(holder, ARGV[1], 1, true) then
  redis.call('UNLINK', base .. '@export', base .. '@touched', base .. '@touched.batch')
end
return 0
