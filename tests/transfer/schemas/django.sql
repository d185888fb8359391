CREATE TABLE "django_content_type" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "app_label" varchar(100) NOT NULL,
    "model" varchar(100) NOT NULL
);
CREATE UNIQUE INDEX "django_content_type_app_label_model_76bd3d3b_uniq" ON "django_content_type" ("app_label", "model");
CREATE TABLE "auth_permission" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "content_type_id" integer NOT NULL REFERENCES "django_content_type" ("id") DEFERRABLE INITIALLY DEFERRED,
    "codename" varchar(100) NOT NULL,
    "name" varchar(255) NOT NULL
);
CREATE UNIQUE INDEX "auth_permission_content_type_id_codename_01ab375a_uniq" ON "auth_permission" ("content_type_id", "codename");
CREATE INDEX "auth_permission_content_type_id_2f476e4b" ON "auth_permission" ("content_type_id");
CREATE TABLE "auth_group" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "name" varchar(150) NOT NULL UNIQUE
);
CREATE TABLE "auth_group_permissions" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "group_id" integer NOT NULL REFERENCES "auth_group" ("id") DEFERRABLE INITIALLY DEFERRED,
    "permission_id" integer NOT NULL REFERENCES "auth_permission" ("id") DEFERRABLE INITIALLY DEFERRED
);
CREATE UNIQUE INDEX "auth_group_permissions_group_id_permission_id_0cd325b0_uniq" ON "auth_group_permissions" ("group_id", "permission_id");
CREATE INDEX "auth_group_permissions_group_id_b120cbf9" ON "auth_group_permissions" ("group_id");
CREATE INDEX "auth_group_permissions_permission_id_84c5c92e" ON "auth_group_permissions" ("permission_id");
CREATE TABLE "auth_user" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "password" varchar(128) NOT NULL,
    "last_login" datetime NULL,
    "is_superuser" bool NOT NULL,
    "username" varchar(150) NOT NULL UNIQUE,
    "last_name" varchar(150) NOT NULL,
    "email" varchar(254) NOT NULL,
    "is_staff" bool NOT NULL,
    "is_active" bool NOT NULL,
    "date_joined" datetime NOT NULL,
    "first_name" varchar(150) NOT NULL
);
CREATE TABLE "auth_user_groups" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "user_id" integer NOT NULL REFERENCES "auth_user" ("id") DEFERRABLE INITIALLY DEFERRED,
    "group_id" integer NOT NULL REFERENCES "auth_group" ("id") DEFERRABLE INITIALLY DEFERRED
);
CREATE UNIQUE INDEX "auth_user_groups_user_id_group_id_94350c0c_uniq" ON "auth_user_groups" ("user_id", "group_id");
CREATE INDEX "auth_user_groups_user_id_6a12ed8b" ON "auth_user_groups" ("user_id");
CREATE INDEX "auth_user_groups_group_id_97559544" ON "auth_user_groups" ("group_id");
CREATE TABLE "django_session" (
    "session_key" varchar(40) NOT NULL PRIMARY KEY,
    "session_data" text NOT NULL,
    "expire_date" datetime NOT NULL
);
CREATE INDEX "django_session_expire_date_a5c62663" ON "django_session" ("expire_date");
CREATE TABLE "django_migrations" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "app" varchar(255) NOT NULL,
    "name" varchar(255) NOT NULL,
    "applied" datetime NOT NULL
);
CREATE TABLE "shop_product" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "sku" varchar(12) NOT NULL UNIQUE,
    "price" decimal NOT NULL,
    "stock" integer unsigned NOT NULL CHECK ("stock" >= 0),
    "weight" real NULL,
    "active" bool NOT NULL,
    "data" text NOT NULL CHECK ((JSON_VALID("data") OR "data" IS NULL)),
    "uid" char(32) NULL,
    "took" bigint NULL,
    "day" date NULL,
    "at" time NULL,
    "raw" BLOB NULL,
    "big" bigint NULL,
    "ip" char(39) NULL,
    "slug" varchar(50) NULL,
    "made" datetime NOT NULL,
    "parent_id" bigint NULL REFERENCES "shop_product" ("id") DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT "price_positive" CHECK ("price" >= '0')
);
CREATE INDEX "shop_product_slug_30bd2d5d" ON "shop_product" ("slug");
CREATE INDEX "shop_product_parent_id_79be6a81" ON "shop_product" ("parent_id");
CREATE INDEX "active_days" ON "shop_product" ("day") WHERE "active";
INSERT INTO django_content_type VALUES (1, 'shop', 'product'), (2, 'auth', 'user');
INSERT INTO auth_permission VALUES (1, 1, 'add_product', 'Can add product');
INSERT INTO auth_group VALUES (1, 'Käufer');
INSERT INTO auth_group_permissions VALUES (1, 1, 1);
INSERT INTO auth_user VALUES (1, 'pbkdf2_sha256$1000000$x', NULL, 0, 'ann', '', 'ann@example.com', 1, 1, '2026-11-30 09:32:26.123456', ''), (7, '!', '2026-11-30 10:00:00', 1, 'bob', 'O''Hara', '', 0, 0, '2026-11-30 09:32:26', 'Bob');
DELETE FROM auth_user WHERE id = 7;
INSERT INTO auth_user_groups VALUES (1, 1, 1);
INSERT INTO django_session VALUES ('k3', 'e30:1x', '2026-12-14 09:32:26.000001');
INSERT INTO django_migrations VALUES (1, 'shop', '0001_initial', '2026-11-30 09:32:25.5');
INSERT INTO shop_product VALUES (1, 'A1', 12.5, 0, NULL, 1, '{"a": [1, null, "\u00fc"]}', '6f9619ff8b86d011b42d00cf4fc964ff', 172803500000, '2024-02-29', '01:02:03', x'00ff', 4611686018427387904, '::1', 'x', '2026-11-30 09:32:26.000001', NULL);
INSERT INTO shop_product VALUES (2, 'A2', 1, 3, 0.1, 0, '{}', NULL, NULL, NULL, '23:59:59.999999', NULL, -1, NULL, NULL, '2026-11-30 09:32:27', 1);
