-- A shop: customers, products and orders.
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, town text NOT NULL);
CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, price numeric(8, 2) NOT NULL, stock int NOT NULL);
CREATE TABLE orders (
    id bigserial PRIMARY KEY,
    customer int NOT NULL REFERENCES customers,
    product int NOT NULL REFERENCES products,
    quantity int NOT NULL,
    ordered timestamptz NOT NULL DEFAULT now()
);
INSERT INTO customers SELECT n, 'customer ' || n, 'town ' || n % 200 FROM generate_series(1, 20000) AS n;
INSERT INTO products SELECT n, 'product ' || n, (random() * 100 + 1)::numeric(8, 2), 1000 FROM generate_series(1, 500) AS n;
INSERT INTO orders (customer, product, quantity, ordered)
    SELECT 1 + n % 20000, 1 + n % 500, 1 + n % 5, now() - n * interval '1 minute' FROM generate_series(1, 100000) AS n;
-- There is no index on orders (customer) on purpose: the demo shall have something to find.
VACUUM ANALYZE;
