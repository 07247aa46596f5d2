-- The Hub asked to be left alone. ARGV: node, host and bucket, ms; without ms: how long still, ms.
local key, field = base .. 'hub', ARGV[2]
local ends = tonumber(string.match(call('HGET', key, field) or '', '^%d+')) or 0
if ARGV[3] and now + ARGV[3] > ends then
  ends = now + ARGV[3]
  if call('HLEN', key) < 256 then call('HSET', key, field, string.format('%.0f', ends)) end
  if call('PTTL', key) < tonumber(ARGV[3]) then call('PEXPIRE', key, ARGV[3]) end
end
return math.max(0, ends - now)
