-- Applies one transaction, or nothing.
-- KEYS[1]: the tag before all keys of the volume. ARGV: ring, slot, request, 1 if it is a repetition else 0, session or '',
-- channel or '', what to ring with ('.', or '!' if readers should not finish their pause), message, number of expectations,
-- the expectations (op, map [, field [, value]]), the writes (op, map [, field [, value [, bound]]]; a release: op, map,
-- field, map, field, value).
-- Answers A (applied), B (a bound was met), C<n> (expectation n, from 0), F (fenced), N<n> (write n found no number).
-- Every server call here costs more than the lines around it: there are as few as can be.
local base, ARGV, call = KEYS[1], ARGV, redis.call
local slot, request, again = base .. ARGV[1] .. ':' .. ARGV[2], ARGV[3], ARGV[4] == '1'
local session, channel, expectations = ARGV[5], ARGV[6], tonumber(ARGV[9])
local at, last = 10, #ARGV

-- A slot belongs to one request at a time. What this one did before its reply was lost is written there; a request
-- newer than this one means that nobody waits for this one any more.
local found = call('MGET', slot, base .. '@export', base .. '@awake')
local done, export, awake = found[1], found[2], found[3]
if done then
  local number, outcome = string.match(done, '^(%d+)(.*)$')
  if number == request then return outcome end
  if tonumber(number) > tonumber(request) then return redis.error_reply('HFOLD request was given up') end
end

local function finish(outcome)
  -- Far longer than anybody repeats.
  call('SET', slot, request .. outcome, 'PX', 600000)
  return outcome
end

-- A request that was sent once needs no note that it did nothing. Of one that was sent twice, the first copy may still be
-- on its way: it must not succeed after its sender was told that it did not.
local function refuse(outcome)
  return again and finish(outcome) or outcome
end

if session ~= '' and call('HEXISTS', base .. ':sessions/', session) == 0 then return refuse('F') end

local colon = base .. ':'
for n = 0, expectations - 1 do
  local op, key = ARGV[at], colon .. ARGV[at + 1]
  local holds
  if op == 'e' then
    holds = call('HGET', key, ARGV[at + 2]) == ARGV[at + 3]
    at = at + 4
  elseif op == 'm' then
    holds = call('EXISTS', key) == 0
    at = at + 2
  else
    holds = call('HEXISTS', key, ARGV[at + 2]) == (op == 'p' and 1 or 0)
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

-- A script that fails half way is not undone: so first find out what is to be written, then write it. Step n sets a field
-- to values[n], or deletes it if that is false, or drops the map if fields[n] is false.
local maps, fields, values, steps = {}, {}, {}, 0
-- What a field of a long transaction is to be; a short one is looked through.
local long, fresh = last > 200, {}
local function put(map, field, value)
  steps = steps + 1
  maps[steps], fields[steps], values[steps] = map, field, value
  if long then
    local known = fresh[map]
    if not known or not field then
      known = { dropped = not field or nil, fields = {} }
      fresh[map] = known
    end
    if field then known.fields[field] = value end
  end
end
local function current(map, field)
  if long then
    local known = fresh[map]
    if known then
      local value = known.fields[field]
      if value ~= nil then return value end
      if known.dropped then return false end
    end
  else
    for n = steps, 1, -1 do
      if maps[n] == map then
        if fields[n] == field then return values[n] end
        if not fields[n] then return false end
      end
    end
  end
  return call('HGET', colon .. map, field)
end

local n = 0
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
    put(map, false, false)
    at = at + 2
  else
    local old, given = current(map, field), ARGV[at + 3]
    local short = #given <= 15 and (not old or (#old <= 15 and string.find(old, '^%-?%d+$')))
    if op == 'x' and old and #old == #given and string.find(old, '^%d+$') then
      -- Times have as many digits as each other.
      if given > old then put(map, field, given) end
      at = at + 4
    elseif op ~= 'x' and short then
      -- Exact: sums of what is this short have 16 digits at most, and longer bounds are far beyond them.
      local sum = (old and tonumber(old) or 0) + tonumber(given)
      at = at + 4
      if op == 'b' then
        if sum > tonumber(ARGV[at]) then return refuse('B') end
        at = at + 1
      end
      put(map, field, string.format('%.0f', sum))
    else
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
  end
  n = n + 1
end

-- Somebody reads everything meanwhile: what changes now has to be read again.
if export and steps > 0 then
  for step = 1, steps do
    local map, field = maps[step], fields[step]
    call('SADD', base .. '@touched', field and 'f' .. #map .. ':' .. map .. field or 'm' .. map)
  end
  call('PEXPIRE', base .. '@touched', 600000)
end

local step = 1
while step <= steps do
  local map, field, value = maps[step], fields[step], values[step]
  local key = colon .. map
  -- The 47 is a slash.
  local order = string.byte(map, -1) == 47 and base .. '#' .. map
  if not field then
    call('UNLINK', key)
    if order then call('UNLINK', order) end
  elseif not value then
    if call('HDEL', key, field) == 1 and order then call('ZREM', order, field) end
  elseif order then
    if call('HSET', key, field, value) == 1 then
      call('ZADD', order, call('INCR', base .. '@entry'), field)
    end
  elseif maps[step + 1] ~= map then
    call('HSET', key, field, value)
  else
    -- Neighbours of one map go together; no more than 500 at a time: Lua's stack is short.
    local some, count = { field, value }, 2
    while count < 1000 and maps[step + 1] == map and fields[step + 1] and values[step + 1] do
      step = step + 1
      some[count + 1], some[count + 2], count = fields[step], values[step], count + 2
    end
    call('HSET', key, unpack(some))
  end
  step = step + 1
end

-- The log: after its name of 64 bytes one message follows another. When it is long, the next one begins, and whoever reads
-- finds the one before for as long as the next one grows. All are rung for only if one of them may not be about to look.
if channel ~= '' then
  local log, message, bell = base .. '@log', ARGV[8], ARGV[7]
  local length = call('APPEND', log, message)
  if length == #message or length > 1048576 then
    local name = string.format('%-64s', ARGV[1] .. ':' .. ARGV[2] .. ':' .. request)
    if length == #message then
      call('SET', log, name .. message)
    else
      call('RENAME', log, log .. '.before')
      call('SET', log, name)
    end
  end
  if not awake then call('SET', base .. '@awake', 1) end
  if not awake or bell == '!' then call('PUBLISH', channel, bell) end
end
if n == 0 and channel == '' then return 'A' end
return finish('A')
