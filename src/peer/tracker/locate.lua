-- Where the Hub says that a blob is. ARGV: node, blob and scope, what to do, and
--   'ask' token, ms: the location; or that this node is to find it out; or how long another one has for that
--   'tell' token, ms, location | 'fail' token | 'drop' location: it is of no use
local key, lock = base .. 'u:' .. ARGV[2], base .. 'resolve:' .. ARGV[2]
local what, token = ARGV[3], ARGV[4]
if what == 'ask' then
  local location = call('GET', key)
  if location then return { 'K', location, call('PTTL', key) } end
  local holder = call('GET', lock)
  if not holder or holder == token then
    call('SET', lock, token, 'PX', ARGV[5])
    return { 'R' }
  end
  return { 'W', call('PTTL', lock) }
elseif what == 'drop' then
  return call('GET', key) == token and call('UNLINK', key) or 0
end
if what == 'tell' then call('SET', key, ARGV[6], 'PX', ARGV[5]) end
return call('GET', lock) == token and call('UNLINK', lock) or 0
