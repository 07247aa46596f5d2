-- Who has these chunks of a blob, and leases for those that nobody has.
-- ARGV: node, blob, ms of a lease, ms of a participant, most new leases, 1 if the node serves nobody, its zone, seed, chunks.
local oid, ttl, recent, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local apart, zone, first = ARGV[6] == '1', ARGV[7], 9
local who, taking_part, leases_key = base .. 'who:' .. oid, base .. 'in:' .. oid, base .. 'l:' .. oid
-- The most nodes that are looked at, and the most holders of a chunk among which three are chosen.
local NODES, ENOUGH = 256, 6
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

-- Who may hold them: live nodes in random order, those of the same zone first. Nobody serves a node that is blocked.
local order, near = {}, {}
for _, id in ipairs(advertised) do
  if nodes[id] and id ~= me and not is_blocked then
    local list = nodes[id].class % 2 == 0 and near or order
    local at = math.random(#list + 1)
    list[#list + 1] = list[at]
    list[at] = id
  end
end
for _, id in ipairs(order) do near[#near + 1] = id end
order = near
-- The chunks by the byte of a bitmap in which they are, with a mask of those that lack holders.
local band, bytes, by_byte, holders = bit.band, {}, {}, {}
for n = first, #ARGV do
  local chunk = tonumber(ARGV[n])
  local at = math.floor(chunk / 8)
  local group = by_byte[at]
  if not group then
    group = { at = at, lacking = 0 }
    by_byte[at], bytes[#bytes + 1] = group, group
  end
  local mask = 2 ^ (7 - chunk % 8)
  group.lacking = bit.bor(group.lacking, mask)
  group[#group + 1] = { mask, n }
  holders[n] = {}
end
local from, to = math.floor(lo / 8), math.floor(hi / 8)
local narrow, lacking = to - from < 1024, #bytes
for visited, id in ipairs(order) do
  -- Chunks that lie far apart are looked up one by one: then not with everybody.
  if lacking == 0 or (not narrow and visited > 4096 / #bytes) then break end
  local key = base .. 'p:' .. oid .. ':' .. id
  local bits = narrow and call('GETRANGE', key, from, to)
  -- After some nodes one holder will do.
  local enough = visited <= 16 and ENOUGH or 1
  for _, group in ipairs(bytes) do
    if group.lacking > 0 and bits ~= '' then
      local byte
      if narrow then
        byte = string.byte(bits, group.at - from + 1) or 0
      else
        byte = string.byte(call('GETRANGE', key, group.at, group.at)) or 0
      end
      local found = band(byte, group.lacking)
      if found > 0 then
        for _, wanted in ipairs(group) do
          if band(found, wanted[1]) > 0 then
            local list = holders[wanted[2]]
            list[#list + 1] = id
          end
        end
      end
      if found > 0 or visited == 17 then
        for _, wanted in ipairs(group) do
          if #holders[wanted[2]] >= enough then group.lacking = band(group.lacking, 255 - wanted[1]) end
        end
        if group.lacking == 0 then lacking = lacking - 1 end
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
    -- Three of them, those with free slots first, then those of the same zone; each chunk begins with another one.
    local list, chosen = holders[n], {}
    local start = math.random(#list)
    for class = 0, 3 do
      for at = start, start + #list - 1 do
        local id = list[at % #list + 1]
        if #chosen < 3 and nodes[id].class == class then chosen[#chosen + 1] = mention(id) end
      end
      if #chosen == 3 then break end
    end
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
