-- what a change of a server would wait for, so that the change itself waits for nothing: should it fail, its text is in
-- the server's log
SELECT FROM {powa}.powa_servers AS s WHERE s.id = $1 FOR UPDATE
