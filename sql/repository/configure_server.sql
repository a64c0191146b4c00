-- change what the object ($2) names of a server
SELECT {powa}.powa_configure_server($1, $2::pg_catalog.text::pg_catalog.json)
