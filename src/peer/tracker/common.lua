-- What all scripts of the tracker begin with. KEYS[1]: the tag before all keys of the volume. ARGV[1]: the node that asks.
local call, base, me = redis.call, KEYS[1] .. '@p:', ARGV[1]
local time = call('TIME')
-- Milliseconds, and microseconds as text: that is more digits than a number shows here.
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = time[1] .. string.format('%06d', time[2])

-- Until when who is blocked: by node id, and by address.
local function blocks()
  local all, until_ms = call('HGETALL', base .. 'block'), {}
  for n = 1, #all, 2 do
    local ms = tonumber(string.match(all[n + 1], '^%d+'))
    if ms and ms > now then until_ms[all[n]] = ms end
  end
  return until_ms
end

-- The heartbeats of `ids`, in their order; false for the dead.
local function heartbeats(ids)
  local keys = {}
  for n, id in ipairs(ids) do keys[n] = base .. 'node:' .. id end
  return #keys > 0 and call('MGET', unpack(keys)) or {}
end

-- Of a heartbeat: address, zone, free slots, flags (h: may call the Hub, l: leech).
local function head(beat)
  return string.match(beat, '^([^|\n]+)|([^|\n]*)|(%d+)|([^|\n]*)')
end

-- The fields of a chunk's lease: the one that all see, and the one of a node that serves nobody, which binds nobody.
local function fields_of(chunk)
  return chunk, chunk .. '@' .. me
end
