-- Applies one transaction, or nothing.
-- KEYS[1]: the tag before all keys of the volume. ARGV: ring, slot, request, 1 if it is a repetition else 0, session or '',
-- channel or '', message, number of expectations, the expectations (op, map [, field [, value]]), the writes (op, map
-- [, field [, value [, bound]]]; a release: op, map, field, map, field, value).
-- Answers A (applied), B (a bound was met), C<n> (expectation n, from 0), F (fenced), N<n> (write n found no number).
local base = KEYS[1]
local ring, slot, request, again = base .. ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local session, channel, message, expectations = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local at = 9

-- A slot belongs to one request at a time. What this one did before its reply was lost is written there; a request
-- newer than this one means that nobody waits for this one any more.
local done = redis.call('HGET', ring, slot)
if done then
  local number, outcome = string.match(done, '^(%d+)(.*)$')
  if number == request then return outcome end
  if tonumber(number) > tonumber(request) then return redis.error_reply('HFOLD request was given up') end
end

local function finish(outcome)
  redis.call('HSET', ring, slot, request .. outcome)
  -- Far longer than anybody repeats.
  redis.call('PEXPIRE', ring, 600000)
  return outcome
end

-- A request that was sent once needs no note that it did nothing. Of one that was sent twice, the first copy may still be
-- on its way: it must not succeed after its sender was told that it did not.
local function refuse(outcome)
  return again and finish(outcome) or outcome
end

if session ~= '' and redis.call('HEXISTS', base .. ':sessions/', session) == 0 then return refuse('F') end

for n = 0, expectations - 1 do
  local op, map = ARGV[at], base .. ':' .. ARGV[at + 1]
  local holds
  if op == 'm' then
    holds = redis.call('EXISTS', map) == 0
    at = at + 2
  elseif op == 'e' then
    holds = redis.call('HGET', map, ARGV[at + 2]) == ARGV[at + 3]
    at = at + 4
  else
    holds = redis.call('HEXISTS', map, ARGV[at + 2]) == (op == 'p' and 1 or 0)
    at = at + 3
  end
  if not holds then return refuse('C' .. n) end
end

-- Numbers go beyond what a double holds exactly: high * 10^9 + low, 0 <= low < 10^9, the sign in high.
local BILLION = 1000000000
local function parse(text)
  local sign, digits = string.match(text, '^(%-?)(%d+)$')
  if not digits or #digits > 20 then return nil end
  local high, low = tonumber(string.sub(digits, 1, -10)) or 0, tonumber(string.sub(digits, -9))
  if sign == '-' then
    high, low = -high, -low
    if low < 0 then high, low = high - 1, low + BILLION end
  end
  return high, low
end
local function show(high, low)
  local sign = ''
  if high < 0 then
    sign, high = '-', -high
    if low > 0 then high, low = high - 1, BILLION - low end
  end
  if high == 0 then return sign .. string.format('%d', low) end
  return sign .. string.format('%.0f%09d', high, low)
end
local function above(high, low, other_high, other_low)
  return high > other_high or (high == other_high and low > other_low)
end

-- A script that fails half way is not undone: so first find out what is to be written, then write it.
local dropped, fresh, steps = {}, {}, {}
local function current(map, field)
  local fields = fresh[map]
  if fields and fields[field] ~= nil then return fields[field] end
  if dropped[map] then return false end
  return redis.call('HGET', base .. ':' .. map, field)
end
local function put(map, field, value)
  local fields = fresh[map]
  if not fields then
    fields = {}
    fresh[map] = fields
  end
  fields[field] = value
  steps[#steps + 1] = { map, field, value }
end

local n, last = 0, #ARGV
while at <= last do
  local op, map, field = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if op == 's' then
    put(map, field, ARGV[at + 3])
    at = at + 4
  elseif op == 'd' then
    put(map, field, false)
    at = at + 3
  elseif op == 'r' then
    local high, low = 0, 0
    local old = current(map, field)
    if old then
      high, low = parse(old)
      if not high then return refuse('N' .. n) end
    end
    if high == 0 and low == 1 then
      put(map, field, false)
    elseif above(high, low, 0, 0) then
      low = low - 1
      if low < 0 then high, low = high - 1, low + BILLION end
      put(map, field, show(high, low))
    else
      put(ARGV[at + 3], ARGV[at + 4], ARGV[at + 5])
    end
    at = at + 6
  elseif op == 'D' then
    dropped[map], fresh[map] = true, nil
    steps[#steps + 1] = { map }
    at = at + 2
  else
    local old, given = current(map, field), ARGV[at + 3]
    local high, low = parse(given)
    local old_high, old_low
    if old then
      old_high, old_low = parse(old)
      if not old_high then return refuse('N' .. n) end
    end
    if op == 'x' then
      if not old or above(high, low, old_high, old_low) then put(map, field, given) end
      at = at + 4
    else
      high, low = high + (old_high or 0), low + (old_low or 0)
      if low >= BILLION then high, low = high + 1, low - BILLION end
      if above(high, low, 9223372036, 854775807) or above(-9223372037, 145224192, high, low) then
        return refuse('N' .. n)
      end
      at = at + 4
      if op == 'b' then
        local bound_high, bound_low = parse(ARGV[at])
        if above(high, low, bound_high, bound_low) then return refuse('B') end
        at = at + 1
      end
      put(map, field, show(high, low))
    end
  end
  n = n + 1
end

-- Somebody reads everything meanwhile: what changes now has to be read again.
if #steps > 0 and redis.call('EXISTS', base .. '@export') == 1 then
  for _, step in ipairs(steps) do
    local map, field = step[1], step[2]
    redis.call('SADD', base .. '@touched', field == nil and 'm' .. map or 'f' .. #map .. ':' .. map .. field)
  end
  redis.call('PEXPIRE', base .. '@touched', 600000)
end

for _, step in ipairs(steps) do
  local map, field, value = step[1], step[2], step[3]
  local key = base .. ':' .. map
  local order = string.sub(map, -1) == '/' and base .. '#' .. map
  if field == nil then
    redis.call('UNLINK', key)
    if order then redis.call('UNLINK', order) end
  elseif value then
    if redis.call('HSET', key, field, value) == 1 and order then
      redis.call('ZADD', order, redis.call('INCR', base .. '@entry'), field)
    end
  elseif redis.call('HDEL', key, field) == 1 and order then
    redis.call('ZREM', order, field)
  end
end

if channel ~= '' then redis.call('PUBLISH', channel, message) end
if n == 0 and channel == '' then return 'A' end
return finish('A')
