-- All nodes, who is blocked, who was added by hand, the Hub's pauses, and how many blobs are needed of the Hub.
-- How long a silent node is remembered, ms, and how many nodes at most.
local FORGET, MOST = 3600000, 1000
local all, ids, rows = call('HGETALL', base .. 'nodes'), {}, {}
for n = 1, #all, 2 do ids[#ids + 1] = all[n] end
local beats, silent = {}, {}
for from = 1, #ids, 1000 do
  local some = {}
  for n = from, math.min(from + 999, #ids) do some[#some + 1] = ids[n] end
  for _, beat in ipairs(heartbeats(some)) do beats[#beats + 1] = beat end
end
local many = #ids > MOST
for n, id in ipairs(ids) do
  local row = all[2 * n]
  local last = tonumber(string.match(row, '^%d+')) or 0
  if not beats[n] and (many or last < now - FORGET) then
    silent[#silent + 1] = id
  else
    rows[#rows + 1], rows[#rows + 2], rows[#rows + 3] = id, row, beats[n] or ''
  end
end
for from = 1, #silent, 1000 do
  call('HDEL', base .. 'nodes', unpack(silent, from, math.min(from + 999, #silent)))
end
local function live(key)
  -- Pairs of a name and `<ms when it ends>|…`; what has ended is dropped.
  local pairs_, found = call('HGETALL', base .. key), {}
  for n = 1, #pairs_, 2 do
    local ms = tonumber(string.match(pairs_[n + 1], '^%d+'))
    if ms and ms > now then
      found[#found + 1], found[#found + 2] = pairs_[n], pairs_[n + 1]
    else
      call('HDEL', base .. key, pairs_[n])
    end
  end
  return found
end
return { micros, known, alive, rows, live('block'), live('added'), live('hub'), call('ZCARD', base .. 'needs') }
