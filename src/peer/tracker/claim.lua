-- Who has these chunks of a blob, and leases for those that nobody has.
-- ARGV: node, blob, ms of a lease, ms of a participant, most new leases, 1 if the node serves nobody, its zone, seed, chunks.
local oid, ttl, recent, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local apart, zone, first = ARGV[6] == '1', ARGV[7], 9
local who, taking_part, leases_key = base .. 'who:' .. oid, base .. 'in:' .. oid, base .. 'l:' .. oid
-- The most nodes that are looked at, and the most holders of a chunk among which three are chosen.
local NODES, ENOUGH = 256, 12
math.randomseed(tonumber(ARGV[8]))

local names, lo, hi = {}, math.huge, 0
for n = first, #ARGV do
  names[#names + 1], names[#names + 2] = fields_of(ARGV[n])
  lo, hi = math.min(lo, tonumber(ARGV[n])), math.max(hi, tonumber(ARGV[n]))
end
local leases = call('HMGET', leases_key, unpack(names))

-- Everybody who may matter, and whether they live.
local ids, met = { me }, { [me] = true }
local function meet(id)
  if not met[id] then
    met[id] = true
    ids[#ids + 1] = id
  end
end
local advertised = call('ZREVRANGE', who, 0, NODES - 1)
for _, id in ipairs(advertised) do meet(id) end
local participants = call('ZREVRANGEBYSCORE', taking_part, '+inf', now - recent, 'LIMIT', 0, NODES)
for _, id in ipairs(participants) do meet(id) end
for _, lease in ipairs(leases) do
  if lease then meet(string.match(lease, '^%x+')) end
end
local beats, blocked, nodes = heartbeats(ids), blocks(), {}
-- Nobody would respect the leases of a node without a heartbeat: it sends one and asks again.
if not beats[1] then return false end
for n, id in ipairs(ids) do
  if beats[n] then
    local addr, node_zone, slots, flags = head(beats[n])
    if addr and not blocked[id] and not blocked[addr] then
      local class = (tonumber(slots) > 0 and 0 or 2) + ((zone ~= '' and node_zone == zone) and 0 or 1)
      nodes[id] = { addr, node_zone, slots, class = class, hub = string.find(flags, 'h', 1, true) }
    end
  end
end
local is_blocked = not nodes[me]
apart = apart or is_blocked

-- Holders of each chunk: live nodes in random order, until there are enough of them.
local order = {}
for _, id in ipairs(advertised) do
  -- Nobody serves a node that is blocked.
  if nodes[id] and id ~= me and not is_blocked then
    local at = math.random(#order + 1)
    order[#order + 1] = order[at]
    order[at] = id
  end
end
local from, to = math.floor(lo / 8), math.floor(hi / 8)
local narrow = to - from < 1024
local holders, lacking = {}, 0
for n = first, #ARGV do holders[n], lacking = {}, lacking + 1 end
for visited, id in ipairs(order) do
  -- Chunks that lie far apart are looked up one by one.
  if lacking == 0 or (not narrow and visited > 32) then break end
  local key = base .. 'p:' .. oid .. ':' .. id
  local bits = narrow and call('GETRANGE', key, from, to)
  for n = first, #ARGV do
    if #holders[n] < ENOUGH then
      local chunk, held = tonumber(ARGV[n]), nil
      if narrow then
        local byte = string.byte(bits, math.floor(chunk / 8) - from + 1) or 0
        held = math.floor(byte / 2 ^ (7 - chunk % 8)) % 2 == 1
      else
        held = call('GETBIT', key, chunk) == 1
      end
      if held then
        holders[n][#holders[n] + 1] = id
        if #holders[n] == ENOUGH then lacking = lacking - 1 end
      end
    end
  end
end

-- The nodes that the answer names.
local table_of_nodes, place = {}, {}
local function mention(id)
  if not place[id] then
    place[id] = #table_of_nodes
    local node = nodes[id]
    table_of_nodes[#table_of_nodes + 1] = table.concat({ id, node[1], node[2], node[3] }, '|')
  end
  return place[id]
end

local fence, writes, answers = base .. 'fence', {}, {}
local function token()
  if #writes == 0 then
    -- Greater than all before, also if those are forgotten.
    call('SET', fence, micros, 'NX')
    call('EXPIRE', fence, 2592000)
  end
  return string.format('%.0f', call('INCR', fence))
end
local function lease(field, number)
  writes[#writes + 1], writes[#writes + 2] = field, me .. '|' .. number .. '|' .. string.format('%.0f', now + ttl)
end
for n = first, #ARGV do
  local common, own = fields_of(ARGV[n])
  local answer
  if #holders[n] > 0 then
    -- Three of them, those with free slots first, then those of the same zone.
    local rank, chosen = {}, {}
    for at, id in ipairs(holders[n]) do rank[at] = { nodes[id].class + math.random(), id } end
    table.sort(rank, function(a, b) return a[1] < b[1] end)
    for at = 1, math.min(3, #rank) do chosen[at] = mention(rank[at][2]) end
    answer = 'H' .. table.concat(chosen, ',')
  else
    local at = 2 * (n - first)
    for which = 2, 1, -1 do
      local held = leases[at + which]
      local owner, number, expires = string.match(held or '', '^(%x+)|(%d+)|(%d+)$')
      if not answer and owner and tonumber(expires) > now then
        if owner == me then
          lease(which == 1 and common or own, number)
          answer = 'G' .. number
        elseif nodes[owner] and not is_blocked then
          answer = 'L' .. mention(owner) .. ',' .. string.format('%.0f', expires - now)
        end
      end
    end
    if not answer and most > 0 then
      most = most - 1
      local number = token()
      lease(apart and own or common, number)
      answer = 'G' .. number
    end
  end
  answers[#answers + 1] = answer or 'F'
end
if #writes > 0 then
  call('HSET', leases_key, unpack(writes))
  call('PEXPIRE', leases_key, ttl * 4)
end

call('ZADD', taking_part, now, me)
call('ZREMRANGEBYSCORE', taking_part, '-inf', '(' .. string.format('%.0f', now - recent))
call('PEXPIRE', taking_part, recent * 2)
local together = {}
if nodes[me] and nodes[me].hub then together[1] = me end
for _, id in ipairs(participants) do
  if id ~= me and nodes[id] and nodes[id].hub then together[#together + 1] = id end
end

-- What nodes said that are gone for good is forgotten, a little each time.
local dead = {}
for n, id in ipairs(ids) do
  if not beats[n] and #dead < 16 then dead[#dead + 1] = id end
end
if #dead > 0 then
  for n, row in ipairs(call('HMGET', base .. 'nodes', unpack(dead))) do
    if not row then
      call('ZREM', who, dead[n])
      call('UNLINK', base .. 'p:' .. oid .. ':' .. dead[n])
    end
  end
end
return { micros, is_blocked and 1 or 0, table.concat(together, ','), table_of_nodes, answers }
