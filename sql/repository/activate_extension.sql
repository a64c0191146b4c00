-- read an extension from a server; false when PoWA does not know it
SELECT {powa}.powa_activate_extension($1, $2)
