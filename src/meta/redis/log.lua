-- What was told since a reader looked last.
-- KEYS[1]: the tag before all keys of the volume. ARGV: the name of the log that was read last, '' if there was none, '?' to
-- begin with what comes now; how far it was read.
-- Answers what was told (nothing at all: some of it is gone), the name of the log of now, how far it was read.
local base, name, from, call = KEYS[1], ARGV[1], tonumber(ARGV[2]), redis.call
local log, before = base .. '@log', base .. '@log.before'
local head = call('GETRANGE', log, 0, 63)
local told = false
if name == '?' then
  told = ''
elseif name == head then
  told = call('GETRANGE', log, from, -1)
  if told ~= '' then return { told, head, from + #told } end
  -- It never grows shorter, but a server may have lost its end.
  if call('STRLEN', log) < from then told = false end
elseif name == '' then
  if call('EXISTS', before) == 0 then told = call('GETRANGE', log, 64, -1) end
elseif call('GETRANGE', before, 0, 63) == name then
  told = call('GETRANGE', before, from, -1) .. call('GETRANGE', log, 64, -1)
end
-- Who found nothing will not look again by himself.
if told == '' and call('EXISTS', base .. '@awake') == 1 then call('DEL', base .. '@awake') end
return { told, head, call('STRLEN', log) }
