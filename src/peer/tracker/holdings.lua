-- Who holds how many chunks of a blob: the live ones that are not blocked. ARGV: node, blob.
local oid = ARGV[2]
local ids, answer = call('ZREVRANGE', base .. 'who:' .. oid, 0, 255), {}
local beats, blocked = heartbeats(ids), blocks()
for n, id in ipairs(ids) do
  local addr, zone, slots = head(beats[n] or '')
  if addr and not blocked[id] and not blocked[addr] then
    local chunks = call('BITCOUNT', base .. 'p:' .. oid .. ':' .. id)
    if chunks > 0 then answer[#answer + 1] = table.concat({ id, addr, zone, slots, chunks }, '|') end
  end
end
return answer
