-- That this node holds something of a blob. The ones that said so longest ago make room.
local function told(oid, lasts)
  local who = base .. 'who:' .. oid
  call('ZADD', who, now, me)
  call('EXPIRE', who, lasts)
  local over = call('ZCARD', who) - 512
  if over > 0 then
    for _, id in ipairs(call('ZPOPMIN', who, math.min(over, 16))) do
      call('UNLINK', base .. 'p:' .. oid .. ':' .. id)
    end
  end
end
