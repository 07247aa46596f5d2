-- Chunks are here, or were given up: what is here is told, and leases end whose token matches.
-- ARGV: node, blob, seconds that possession lasts (0: nothing is told), ms of a participant, chunk and token (or nothing) of each.
local oid, lasts, recent = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local leases_key, bits = base .. 'l:' .. oid, base .. 'p:' .. oid .. ':' .. me
for n = 5, #ARGV, 2 do
  local chunk = ARGV[n]
  if lasts > 0 then call('SETBIT', bits, chunk, 1) end
  if ARGV[n + 1] ~= '' then
    local mine = me .. '|' .. ARGV[n + 1] .. '|'
    for _, field in ipairs({ fields_of(chunk) }) do
      local held = call('HGET', leases_key, field)
      if held and string.sub(held, 1, #mine) == mine then call('HDEL', leases_key, field) end
    end
  end
end
if lasts > 0 then
  call('EXPIRE', bits, lasts)
  told(oid, lasts)
  call('ZADD', base .. 'in:' .. oid, now, me)
  call('PEXPIRE', base .. 'in:' .. oid, recent * 2)
end
return 1
