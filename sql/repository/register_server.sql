-- register a server, with PoWA's defaults for what is null
SELECT {powa}.powa_register_server(
    hostname => $1, port => $2, alias => $3, username => $4, password => $5, dbname => $6, frequency => $7,
    retention => $8::pg_catalog.text::pg_catalog.interval)
