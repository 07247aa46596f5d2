-- A lock of which there is one in the cluster. ARGV: node, its name, token, ms; 0 gives it back. Answers 1 if it is the token's.
local key, token, ms = base .. 'lock:' .. ARGV[2], ARGV[3], tonumber(ARGV[4])
local holder = call('GET', key)
if ms == 0 then return holder == token and call('UNLINK', key) or 0 end
-- 'renew': only if it is still there.
if holder == token or (not holder and ARGV[5] ~= 'renew') then
  call('SET', key, token, 'PX', ms)
  return 1
end
return 0
