-- Leases go on, if they are still this node's. Answers 1 or 0 for each.
-- ARGV: node, ms of a lease, then of each blob: blob, how many, chunk and token of each.
local ttl, answers, at = tonumber(ARGV[2]), {}, 3
while at < #ARGV do
  local key, count = base .. 'l:' .. ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  local any = false
  for _ = 1, count do
    local chunk, mine = ARGV[at], me .. '|' .. ARGV[at + 1] .. '|'
    at = at + 2
    local renewed = 0
    for _, field in ipairs({ fields_of(chunk) }) do
      local held = call('HGET', key, field)
      if held and string.sub(held, 1, #mine) == mine then
        call('HSET', key, field, mine .. string.format('%.0f', now + ttl))
        renewed, any = 1, true
      end
    end
    answers[#answers + 1] = renewed
  end
  if any then call('PEXPIRE', key, ttl * 4) end
end
return answers
