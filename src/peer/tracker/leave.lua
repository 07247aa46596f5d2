-- The node is going: it is not to be asked any more. Its leases are void with its heartbeat.
call('UNLINK', base .. 'node:' .. me)
call('HDEL', base .. 'nodes', me)
return 1
