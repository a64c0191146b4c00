-- The collector's role in a PoWA 5 repository.
--
-- Run in the repository's database, as superuser, once the extension powa is there:
--     psql -d powa -f repository_powa5.sql
-- then give the role a password (\password powa_collector) and a line in pg_hba.conf.

BEGIN;

CREATE ROLE powa_collector LOGIN;

DO $setup$
DECLARE
    powa_schema name := (
        SELECT n.nspname
        FROM pg_catalog.pg_extension AS e
        JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
        WHERE e.extname = 'powa');
    snapshot_role name;
    other record;
BEGIN
    EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO powa_collector', powa_schema);

    -- PoWA's own roles. CREATE EXTENSION makes them in the first database of a cluster and leaves it to us to
    -- use them in another one; they may also have other names.
    EXECUTE pg_catalog.format(
        'SELECT rolname FROM %I.powa_roles WHERE powa_role = ''powa_snapshot''', powa_schema)
    INTO snapshot_role;
    IF snapshot_role IS NULL THEN
        EXECUTE pg_catalog.format(
            'SELECT %I.setup_powa_roles(reuse_existing_role => %L)', powa_schema,
            EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = 'powa_snapshot'));
        snapshot_role := 'powa_snapshot';
    END IF;
    EXECUTE pg_catalog.format('GRANT %I TO powa_collector', snapshot_role);
    -- the versions that PoWA keeps of each server and its extensions
    EXECUTE pg_catalog.format('GRANT UPDATE (version) ON %I.powa_servers TO powa_collector', powa_schema);
    EXECUTE pg_catalog.format(
        'GRANT INSERT, UPDATE, DELETE ON %I.powa_extension_config TO powa_collector', powa_schema);

    -- extensions that keep a history of their own, such as pg_track_settings
    FOR other IN EXECUTE pg_catalog.format($query$
        SELECT n.nspname, c.relname
        FROM %I.powa_extensions AS x
        JOIN pg_catalog.pg_extension AS e ON e.extname = x.extname
        JOIN pg_catalog.pg_depend AS d ON
            d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
            AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'e'
        JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind = 'r'
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE x.external
        $query$, powa_schema)
    LOOP
        EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO powa_collector', other.nspname);
        EXECUTE pg_catalog.format(
            'GRANT SELECT, INSERT, UPDATE, DELETE ON %I.%I TO powa_collector', other.nspname, other.relname);
    END LOOP;

    -- vacuuming the tables that all snapshots pass through, which PostgreSQL 17 and later can grant by itself
    IF pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 170000 THEN
        FOR other IN
            SELECT n.nspname, c.relname
            FROM pg_catalog.pg_class AS c
            JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE c.relkind = 'r' AND c.relname LIKE '%\_src\_tmp'
        LOOP
            EXECUTE pg_catalog.format('GRANT MAINTAIN ON %I.%I TO powa_collector', other.nspname, other.relname);
        END LOOP;
    END IF;
END
$setup$;

COMMIT;
