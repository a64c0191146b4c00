-- The collector's role on a monitored server, for PoWA 4 and 5.
--
-- Run in the server's powa database, as superuser, once the extension powa and those that it reads are there:
--     psql -d powa -f server.sql
-- then give the role a password (\password powa) and a line in pg_hba.conf, and register the server in the
-- repository with that role's name.

BEGIN;

CREATE ROLE powa LOGIN;
-- to see what other roles do
GRANT pg_monitor TO powa;

DO $setup$
DECLARE
    extension record;
BEGIN
    FOR extension IN
        SELECT e.extname, n.nspname
        FROM pg_catalog.pg_extension AS e
        JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
        WHERE n.nspname <> 'pg_catalog'
    LOOP
        EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO powa', extension.nspname);
        -- what the sources of other extensions' rows look up
        IF extension.extname = 'powa' THEN
            EXECUTE pg_catalog.format(
                'GRANT SELECT ON %1$I.powa_databases, %1$I.powa_statements TO powa', extension.nspname);
        END IF;
        -- pg_qualstats is emptied after each snapshot
        IF extension.extname = 'pg_qualstats' THEN
            EXECUTE pg_catalog.format(
                'GRANT EXECUTE ON FUNCTION %I.pg_qualstats_reset() TO powa', extension.nspname);
        END IF;
    END LOOP;
END
$setup$;

COMMIT;
