-- Nothing is changed.
local known, alive = call('HEXISTS', base .. 'nodes', me), call('EXISTS', base .. 'node:' .. me)
