-- A pgbench script: a visit to the shop.
\set customer random(1, 20000)
\set product random_zipfian(1, 500, 1.2)
\set quantity random(1, 5)
SELECT name, price FROM products WHERE id = :product AND stock >= :quantity;
BEGIN;
INSERT INTO orders (customer, product, quantity) VALUES (:customer, :product, :quantity);
UPDATE products SET stock = CASE WHEN stock < 100 THEN 1000 ELSE stock - :quantity END WHERE id = :product;
COMMIT;
SELECT id, product, quantity, ordered FROM orders WHERE customer = :customer ORDER BY ordered DESC LIMIT 10;
