//! TLS: what psql accepts, we accept, and what it refuses, we refuse. It is the psql that came with the
//! server.

mod certificates;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use certificates::Outcome::{Encrypted, Plain};
use certificates::relay::Relay;
use certificates::{Outcome, Site, refused};
use futures_util::{StreamExt, stream};
use support::{Powa, on_both_versions};

/// Options, and what must become of them where psql is not to have the only say.
type Case = (&'static str, Option<Outcome>);

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

on_both_versions! {
    async fn a_valid_certificate(powa: Powa) {
        let outcomes = every_mode(powa, Some("valid")).await;
        for (options, outcome) in &outcomes {
            let is_plain = options.contains("=disable") || options.contains("=allow");
            let needs_root = options.contains("=verify") && !options.contains("root.crt");
            let expected = if is_plain { Plain } else { Encrypted };
            let expected = if needs_root { refused() } else { expected };
            assert!(outcome.is_like(&expected), "{options}: {outcome:?}");
        }
    }

    async fn an_expired_certificate(powa: Powa) {
        let outcomes = every_mode(powa, Some("expired")).await;
        unacceptable(&outcomes, "certificate has expired", "renew the server's certificate");
    }

    async fn a_certificate_of_the_future(powa: Powa) {
        let outcomes = every_mode(powa, Some("future")).await;
        unacceptable(&outcomes, "certificate is not yet valid", "clocks");
    }

    async fn a_certificate_of_another_authority(powa: Powa) {
        let outcomes = every_mode(powa, Some("stranger")).await;
        unacceptable(&outcomes, "unable to get local issuer certificate", "root.crt must hold it");
    }

    async fn a_certificate_of_another_host(powa: Powa) {
        for (options, outcome) in every_mode(powa, Some("elsewhere")).await {
            if !options.contains("root.crt") {
                continue;
            }
            match options.split_whitespace().next().unwrap() {
                "sslmode=disable" | "sslmode=allow" => assert_eq!(outcome, Plain),
                "sslmode=verify-full" => {
                    let told = outcome.refusal();
                    let names = "is for db1.example.org, db2.example.org, and not for \"localhost\"";
                    assert!(told.contains(names), "{told}");
                    assert!(told.contains("hostaddr") && told.contains("verify-ca"), "{told}");
                }
                _ => assert_eq!(outcome, Encrypted, "{options}"),
            }
        }
    }

    async fn a_certificate_that_is_revoked(powa: Powa) {
        let outcomes = every_mode(powa, Some("revoked")).await;
        let (with, without): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|(options, _)| options.contains("sslcrl"));
        unacceptable(&with, "certificate revoked", "list of sslcrl");
        for mode in ["prefer", "require", "verify-ca", "verify-full"] {
            assert_eq!(of(&without, &[&format!("={mode}"), "root.crt"]), Encrypted);
        }
    }

    async fn no_tls_on_the_server(powa: Powa) {
        for (options, outcome) in every_mode(powa, None).await {
            if ["=disable", "=allow", "=prefer"].iter().any(|mode| options.contains(mode)) {
                assert_eq!(outcome, Plain, "{options}");
            } else {
                let told = outcome.refusal();
                assert!(told.contains("the server does not support TLS"), "{told}");
                assert!(told.contains("switch ssl on"), "{told}");
            }
        }
    }

    async fn names(powa: Powa) {
        let site = Site::new(powa).await_certificate("valid").await;
        let full = "sslmode=verify-full sslrootcert=FILES/root.crt";
        let cases = [
            ("valid", "localhost", Some(Encrypted)),
            ("valid", "LOCALHOST", Some(Encrypted)),
            ("valid", "127.0.0.1", Some(Encrypted)),
            ("valid", "127.0.0.2", Some(refused())),
            ("valid", "::1", Some(refused())),
            ("valid", "nobody", Some(refused())),
            ("valid", "localhost.", None),
            ("valid", "''", None),
            ("common", "localhost", Some(Encrypted)),
            ("common", "127.0.0.1", Some(refused())),
            ("common-address", "127.0.0.1", Some(Encrypted)),
            ("common-address", "localhost", Some(refused())),
            ("address-only", "127.0.0.1", Some(Encrypted)),
            ("address-only", "localhost", Some(refused())),
            ("address-only", "nobody", None),
            ("mixed", "localhost", None),
            ("mixed", "127.0.0.1", Some(Encrypted)),
            ("wildcard", "db.example.org", Some(Encrypted)),
            ("wildcard", "DB.Example.ORG", Some(Encrypted)),
            ("wildcard", "a.db.example.org", Some(refused())),
            ("wildcard", "example.org", Some(refused())),
            ("wildcard", ".example.org", None),
            ("wildcard", "*.example.org", None),
            ("elsewhere", "db2.example.org", Some(Encrypted)),
            ("elsewhere", "db3.example.org", Some(refused())),
            ("elsewhere", "localhost", Some(refused())),
            ("manual", "localhost", Some(refused())),
        ];
        for cases in cases.chunk_by(|one, next| one.0 == next.0) {
            site.show(cases[0].0).await;
            let options =
                cases.iter().map(|(_, host, expected)| (format!("{full} host={host}"), expected.clone()));
            site.all(cases[0].0, options).await;
        }
    }

    async fn chains(powa: Powa) {
        let site = Site::new(powa);
        let cases: &[(&str, &[Case])] = &[
            (
                "chain",
                &[
                    ("root.crt", Some(Encrypted)),
                    ("bundle.crt", Some(Encrypted)),
                    ("intermediate.crt", Some(refused())),
                    ("other.crt", Some(refused())),
                ],
            ),
            (
                "leaf",
                &[("root.crt", Some(refused())), ("bundle.crt", Some(Encrypted)), ("intermediate.crt", None)],
            ),
            (
                "manual",
                &[("manual-root.crt", Some(Encrypted)), ("root.crt", Some(refused())), ("manual.crt", None)],
            ),
            ("self", &[("self.crt", Some(Encrypted)), ("root.crt", Some(refused()))]),
            (
                "valid",
                &[("valid.crt", None), ("root.key", None), ("", None), ("keys", None), ("none.crt", None)],
            ),
        ];
        for (certificate, roots) in cases {
            site.show(certificate).await;
            let cases = roots.iter().flat_map(|(root, expected)| {
                ["verify-full", "verify-ca", "require"]
                    .map(|mode| (format!("sslmode={mode} sslrootcert=FILES/{root}"), expected.clone()))
            });
            site.all(certificate, cases).await;
        }
    }

    async fn revocation_lists(powa: Powa) {
        let site = Site::new(powa);
        fs::create_dir(site.file("empty")).unwrap();
        fs::write(site.file("nothing.crl"), "").unwrap();
        let cases: &[(&str, &[Case])] = &[
            (
                "valid",
                &[
                    ("sslcrl=FILES/root.crl", Some(Encrypted)),
                    ("sslcrl=FILES/all.crl", Some(Encrypted)),
                    ("sslcrldir=FILES/crl", Some(Encrypted)),
                    ("sslcrl=FILES/root.crl sslcrldir=FILES/empty", Some(Encrypted)),
                    ("sslcrldir=FILES/empty", Some(refused())),
                    ("sslcrl=FILES/old.crl", Some(refused())),
                    ("sslcrl=FILES/other.crl", Some(refused())),
                    ("sslcrl=FILES/none.crl", None),
                    ("sslcrl=FILES/nothing.crl", None),
                    ("sslcrl=FILES/root.crt", None),
                    ("sslcrldir=FILES/none", None),
                    ("sslcrldir=FILES/root.crl", None),
                    ("sslcrl=FILES/crl", None),
                    ("sslcrl=FILES/none.crl sslcrldir=FILES/crl", None),
                ],
            ),
            (
                "revoked",
                &[
                    ("sslcrl=FILES/all.crl", Some(refused())),
                    ("sslcrldir=FILES/crl", Some(refused())),
                    ("sslcrl=FILES/other.crl sslcrldir=FILES/crl", Some(refused())),
                    ("sslcrl=FILES/root.crl sslrootcert=FILES/none.crt sslmode=require", Some(Encrypted)),
                ],
            ),
            (
                "chain",
                &[
                    ("sslcrl=FILES/root.crl", Some(refused())),
                    ("sslcrl=FILES/all.crl", Some(Encrypted)),
                    ("sslcrl=FILES/intermediate.crl", Some(refused())),
                    ("sslcrl=FILES/intermediate.crl sslcrldir=FILES/crl", Some(Encrypted)),
                ],
            ),
        ];
        for (certificate, lists) in cases {
            site.show(certificate).await;
            let cases = lists.iter().map(|(list, expected)| {
                (format!("sslmode=verify-ca sslrootcert=FILES/root.crt {list}"), expected.clone())
            });
            site.all(certificate, cases).await;
        }
    }

    async fn files_in_the_home_directory(powa: Powa) {
        let site =
            Site::with_hba(powa, "local all all trust\nhostssl all watcher all cert\nhost all all all trust");
        site.run("CREATE ROLE watcher LOGIN").await;
        site.ask_clients().await;
        site.show("stranger").await;
        let cases = ["sslmode=prefer", "sslmode=require", "sslmode=verify-ca", "sslmode=verify-full"];
        let cases = cases.map(|options| (options.to_owned(), None));
        site.all("nothing at home", cases.clone()).await;
        site.settle("root.crt", "root.crt");
        site.all("a root that is not the server's", cases).await;
        assert_eq!(site.ours("sslmode=prefer").await, Plain);
        site.show("revoked").await;
        assert_eq!(site.both("sslmode=verify-full").await, Encrypted);
        site.settle("root.crl", "root.crl");
        assert!(site.both("sslmode=verify-full").await.refusal().contains("revoked"));
        // One that is named takes the place of the one at home.
        fs::write(site.file("nothing.crl"), "").unwrap();
        assert_eq!(site.both("sslmode=verify-full sslcrl=FILES/nothing.crl").await, Encrypted);
        site.show("valid").await;
        let watcher = "sslmode=verify-full user=watcher";
        assert!(site.both(watcher).await.refusal().contains("client certificate"));
        site.settle("rsa.crt", "postgresql.crt");
        assert!(site.both(watcher).await.refusal().contains("postgresql.key"));
        site.settle("rsa.key", "postgresql.key");
        assert_eq!(site.both(watcher).await, Encrypted);
    }

    async fn pg_hba_may_want_tls_or_none(powa: Powa) {
        let site = Site::new(powa).await_certificate("valid").await;
        let modes = |expected: [Outcome; 6]| MODES.into_iter().zip(expected).collect::<Vec<_>>();
        let only = |lines: &str| format!("local all all trust\n{lines}");
        for (hba, expected) in [
            (
                only("hostssl all all all trust"),
                modes([refused(), Encrypted, Encrypted, Encrypted, Encrypted, Encrypted]),
            ),
            (
                only("hostnossl all all all trust"),
                modes([Plain, Plain, Plain, refused(), refused(), refused()]),
            ),
            (only(""), modes([const { Outcome::Refused(String::new()) }; 6])),
        ] {
            site.hba(&hba).await;
            let cases = expected.into_iter().map(|(mode, expected)| {
                (format!("sslmode={mode} sslrootcert=FILES/root.crt"), Some(expected))
            });
            site.all(&hba, cases).await;
        }
        // A password that is wrong with TLS may be right without: another line of pg_hba.conf counts there.
        site.run("SET password_encryption = 'scram-sha-256'; CREATE ROLE watcher LOGIN PASSWORD 'right'")
            .await;
        site.hba("local all all trust\nhostssl all all all scram-sha-256\nhostnossl all all all trust").await;
        let wrong = "user=watcher password=wrong";
        assert_eq!(site.both(&format!("{wrong} sslmode=prefer")).await, Plain);
        // None at all is not tried without TLS.
        site.all("no password", [("user=watcher sslmode=prefer".to_owned(), None)]).await;
        site.hba("local all all trust\nhostnossl all all all scram-sha-256\nhostssl all all all trust").await;
        assert_eq!(site.both(&format!("{wrong} sslmode=allow")).await, Encrypted);
        site.hba("local all all trust\nhost all all all scram-sha-256").await;
        for mode in ["allow", "prefer"] {
            let told = site.both(&format!("{wrong} sslmode={mode}")).await;
            assert_eq!(told.refusal().matches("password authentication failed").count(), 1, "{told:?}");
        }
    }

    async fn versions_of_the_protocol(powa: Powa) {
        let site = Site::new(powa).await_certificate("valid").await;
        site.cluster.set("ssl_max_protocol_version", "TLSv1.2");
        site.cluster.reload().await;
        let cases = [
            ("sslmode=require", Some(Encrypted)),
            ("sslmode=require ssl_min_protocol_version=TLSv1.3", Some(refused())),
            ("sslmode=prefer ssl_min_protocol_version=TLSv1.3", Some(Plain)),
            ("sslmode=require ssl_max_protocol_version=TLSv1.2", Some(Encrypted)),
            ("sslmode=require ssl_min_protocol_version=TLSv1", Some(Encrypted)),
            ("sslmode=require ssl_min_protocol_version='' ssl_max_protocol_version=''", Some(Encrypted)),
            (
                "sslmode=require ssl_max_protocol_version=TLSv1.1 ssl_min_protocol_version=TLSv1.1",
                Some(refused()),
            ),
            ("sslmode=require ssl_max_protocol_version=TLSv1.1", Some(refused())),
        ];
        let cases = cases.map(|(options, expected)| (options.to_owned(), expected));
        site.all("the server does TLS 1.2 at most", cases).await;
        site.cluster.set("ssl_max_protocol_version", "");
        site.cluster.reload().await;
        for (options, expected) in
            [("sslmode=require", "TLSv1.3"), ("sslmode=require ssl_max_protocol_version=tlsv1.2", "TLSv1.2")]
        {
            let session = site.open(options).await.unwrap();
            let question = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            let version: String = session.client.query_one(question, &[]).await.unwrap().get(0);
            assert_eq!(version, expected, "{options}");
        }
    }

    async fn direct_tls(powa: Powa) {
        let site = Site::new(powa).await_certificate("valid").await;
        let direct = "sslnegotiation=direct sslmode=verify-full sslrootcert=FILES/root.crt";
        if powa.is_v5() {
            assert_eq!(site.both(direct).await, Encrypted);
            site.hide().await;
            site.all("no TLS", [(direct.to_owned(), Some(refused()))]).await;
        } else {
            let told = site.ours(direct).await;
            assert!(told.refusal().contains("TLS"), "{told:?}");
        }
        let told = site.ours("sslnegotiation=direct sslmode=prefer").await;
        assert!(told.refusal().contains("option sslnegotiation"), "{told:?}");
    }

    async fn a_socket_is_never_encrypted(powa: Powa) {
        let site = Site::new(powa).await_certificate("valid").await;
        let socket = site.cluster.socket_directory();
        for mode in MODES {
            for root in ["root.crt", "none.crt"] {
                let options =
                    format!("host={} hostaddr='' sslmode={mode} sslrootcert=FILES/{root}", socket.display());
                assert_eq!(site.both(&options).await, Plain, "{options}");
            }
        }
        if powa.is_v4() {
            for (user, expected) in [("postgres", Plain), ("nobody", refused())] {
                let options = format!("host={} hostaddr='' requirepeer={user}", socket.display());
                let outcome = site.both(&options).await;
                if nix::unistd::Uid::effective().is_root() {
                    assert!(outcome.is_like(&expected), "{outcome:?}");
                }
            }
        }
    }

    async fn keys_of_clients(powa: Powa) {
        let site =
            Site::with_hba(powa, "local all all trust\nhostssl all watcher all cert\nhost all all all trust");
        site.run("CREATE ROLE watcher LOGIN").await;
        site.ask_clients().await;
        site.show("valid").await;
        let modes = [("open", 0o644), ("group", 0o640), ("writable", 0o620), ("narrow", 0o400)];
        for (name, mode) in modes {
            let copy = site.file(name);
            fs::copy(site.file("ec.key"), &copy).unwrap();
            fs::set_permissions(&copy, Permissions::from_mode(mode)).unwrap();
        }
        fs::write(site.file("rubbish"), "rubbish").unwrap();
        fs::set_permissions(site.file("rubbish"), Permissions::from_mode(0o600)).unwrap();
        let is_root = nix::unistd::Uid::effective().is_root();
        let mut cases: Vec<(String, Option<Outcome>)> = Vec::new();
        for (kind, names) in [("rsa", ["pkcs8", "traditional"]), ("ec", ["pkcs8", "traditional"])] {
            for name in names {
                for form in ["pem", "der"] {
                    cases.push((format!("{kind} keys/{kind}-{name}.{form}"), Some(Encrypted)));
                }
                let encrypted = format!("{kind} keys/{kind}-{name}-encrypted.pem");
                cases.push((format!("{encrypted} sslpassword=sesame"), Some(Encrypted)));
                cases.push((format!("{encrypted} sslpassword=wrong"), Some(refused())));
                cases.push((encrypted, Some(refused())));
            }
            cases.push((format!("{kind} keys/{kind}-pkcs8-encrypted.der sslpassword=sesame"), None));
            cases.push((format!("{kind} keys/{kind}-pkcs8.pem sslpassword=needless"), Some(Encrypted)));
        }
        for (case, expected) in [
            ("ec open", refused()),
            ("ec group", if is_root { Encrypted } else { refused() }),
            ("ec writable", refused()),
            ("ec narrow", Encrypted),
            ("ec none", refused()),
            ("ec rsa.key", refused()),
            ("ec keys", refused()),
            ("ec rubbish", refused()),
            ("none ec.key", refused()),
            ("rubbish ec.key", refused()),
            ("foreign foreign.key", refused()),
            ("somebody somebody.key", refused()),
            ("far-chain far.key", Encrypted),
            ("far far.key", refused()),
        ] {
            cases.push((case.to_owned(), Some(expected)));
        }
        let options = |case: &str, mode: &str| {
            let (certificate, key) = case.split_once(' ').unwrap();
            format!(
                "user=watcher sslmode={mode} sslrootcert=FILES/root.crt sslcert=FILES/{certificate}.crt \
                 sslkey=FILES/{key}"
            )
        };
        fs::copy(site.file("rubbish"), site.file("rubbish.crt")).unwrap();
        let cases = cases.into_iter().map(|(case, expected)| (options(&case, "verify-full"), expected));
        site.all("the role must show a certificate", cases).await;
        for (case, words) in [
            ("ec open", "sslkey: FILES/open: others have access to it: chmod 6"),
            ("ec none", "sslkey: FILES/none: does not exist"),
            ("ec rsa.key", "sslkey: FILES/rsa.key: not the key of the certificate FILES/ec.crt"),
            ("ec rubbish", "sslkey: FILES/rubbish: not a private key"),
            ("ec keys/ec-pkcs8-encrypted.pem", "encrypted: give its password by sslpassword"),
            ("ec keys/ec-pkcs8-encrypted.pem sslpassword=wrong", "sslpassword is wrong"),
            ("ec keys/ec-pkcs8-encrypted.der", "encrypted"),
            ("none ec.key", "sslcert and sslkey"),
            ("rubbish ec.key", "sslcert: FILES/rubbish.crt: cannot be used"),
            ("foreign foreign.key", "unknown ca"),
            ("somebody somebody.key", "common name must be \"watcher\""),
        ] {
            let told = site.ours(&options(case, "verify-full")).await;
            let told = told.refusal().replace(&site.file("").display().to_string(), "FILES/");
            assert!(told.contains(words), "{case}: {told}");
            assert!(told.contains("watcher@localhost:"), "{case}: {told}");
        }
        // The server hangs up right after it has said why.
        let foreign = options("foreign foreign.key", "verify-full");
        let told: Vec<Outcome> = stream::iter(0..60).map(|_| site.ours(&foreign)).buffered(6).collect().await;
        assert!(told.iter().all(|told| told.refusal().contains("unknown ca")), "{told:?}");
        let mut cases = Vec::new();
        for case in [
            "ec open",
            "ec none",
            "ec rsa.key",
            "ec rubbish",
            "rubbish ec.key",
            "foreign foreign.key",
            "none none",
        ] {
            for mode in ["require", "prefer", "allow"] {
                cases.push((format!("{} user=postgres", options(case, mode)), None));
            }
        }
        site.all("the role need not show a certificate", cases).await;
    }

    async fn sslcertmode(powa: Powa) {
        let site =
            Site::with_hba(powa, "local all all trust\nhostssl all watcher all cert\nhost all all all trust");
        site.run("CREATE ROLE watcher LOGIN").await;
        site.show("valid").await;
        let with = "sslmode=require sslcert=FILES/ec.crt sslkey=FILES/ec.key";
        let wanted = format!("{with} sslcertmode=require");
        let told = agree(&site, &wanted).await;
        assert!(told.refusal().contains("sslcertmode: require, and the server has not asked"), "{told:?}");
        site.ask_clients().await;
        assert_eq!(agree(&site, &wanted).await, Encrypted);
        assert_eq!(agree(&site, &format!("{wanted} user=watcher")).await, Encrypted);
        assert_eq!(agree(&site, &format!("{with} user=watcher sslcertmode=allow")).await, Encrypted);
        let told = agree(&site, &format!("{with} user=watcher sslcertmode=disable")).await;
        assert!(told.refusal().contains("sslcert"), "{told:?}");
        assert_eq!(agree(&site, &format!("{with} sslcertmode=disable sslkey=FILES/none")).await, Encrypted);
        for without in ["", "sslcert=FILES/none.crt"] {
            let told = agree(&site, &format!("sslmode=require sslcertmode=require {without}")).await;
            assert!(told.refusal().contains("sslcertmode"), "{told:?}");
        }
    }

    async fn channel_binding(powa: Powa) {
        let site = with_passwords(powa).await;
        for certificate in ["valid", "sha512", "ed25519", "manual"] {
            site.show(certificate).await;
            for role in ["scrammed", "hashed", "plain", "trusted"] {
                for mode in ["disable", "require"] {
                    for binding in ["disable", "prefer", "require"] {
                        let options =
                            format!("user={role} password=right sslmode={mode} channel_binding={binding}");
                        if certificate == "ed25519"
                            && role == "scrammed"
                            && mode == "require"
                            && binding == "prefer"
                        {
                            // psql gives up; there is nothing to bind to, and we do without.
                            assert!(site.psql(&options).await.refusal().contains("could not find digest"));
                            assert_eq!(site.ours(&options).await, Encrypted);
                            continue;
                        }
                        let is_good = binding != "require"
                            || (role == "scrammed" && mode == "require" && certificate != "ed25519");
                        let outcome = site.both(&options).await;
                        if is_good {
                            assert_eq!(
                                outcome,
                                if mode == "require" { Encrypted } else { Plain },
                                "{options}"
                            );
                            continue;
                        }
                        let told = outcome.refusal();
                        let words = match (mode, certificate) {
                            ("disable", _) => "there is no TLS to bind to",
                            (_, "ed25519") => "names no digest to bind to",
                            _ => "the server does not bind its login to TLS",
                        };
                        assert!(
                            told.contains("option channel_binding: require, and ") && told.contains(words),
                            "{told}"
                        );
                        assert!(told.contains("channel_binding=prefer"), "{told}");
                    }
                }
            }
        }
    }

    async fn somebody_on_the_line(powa: Powa) {
        let site = with_passwords(powa).await;
        site.show("valid").await;
        let stranger = Relay::start(site.cluster.port(), &site.file("stranger")).await;
        let by = |relay: &Relay, options: &str| {
            format!("port={} user=scrammed password=right sslmode=require {options}", relay.port)
        };
        let words = "SCRAM channel binding check failed";
        for binding in ["require", "prefer"] {
            let told = site.both(&by(&stranger, &format!("channel_binding={binding}"))).await;
            assert!(told.refusal().contains(words), "{told:?}");
            assert!(stranger.seen().has("SCRAM-SHA-256-PLUS\0"));
        }
        assert_eq!(site.both(&by(&stranger, "channel_binding=disable")).await, Encrypted);
        assert!(!stranger.seen().has("SCRAM-SHA-256-PLUS"));
        let verified = by(&stranger, "sslrootcert=FILES/root.crt channel_binding=disable");
        assert!(site.both(&verified).await.refusal().contains("local issuer"));
        assert!(!stranger.seen().has("scrammed"));

        // One that has the server's own key cannot be told from it: this is what is bound to.
        for certificate in ["valid", "sha512"] {
            site.show(certificate).await;
            let thief = Relay::start(site.cluster.port(), &site.file(certificate)).await;
            let options = by(&thief, "channel_binding=require");
            assert_eq!(site.psql(&options).await, Encrypted);
            thief.seen();
            assert_eq!(site.ours(&options).await, Encrypted);
            assert!(thief.seen().has("SCRAM-SHA-256-PLUS\0"));
        }
    }

    async fn the_name_is_sent_unless_it_is_an_address(powa: Powa) {
        let site = Site::new(powa).await_certificate("valid").await;
        let relay = Relay::start(site.cluster.port(), &site.file("valid")).await;
        for (options, expected) in [
            ("host=localhost", Some("localhost")),
            ("host=db1.example.org", Some("db1.example.org")),
            ("host=127.0.0.1", None),
            ("host=::1", None),
            ("host=''", None),
            ("host=localhost sslsni=0", None),
            ("host=localhost sslsni=1", Some("localhost")),
        ] {
            let options = format!("port={} sslmode=require {options}", relay.port);
            for outcome in [site.psql(&options).await, site.ours(&options).await] {
                assert_eq!(outcome, Encrypted, "{options}");
            }
            let expected = expected.map(str::to_owned);
            assert_eq!(relay.seen().names, [expected.clone(), expected], "{options}");
        }
    }

    async fn require_auth(powa: Powa) {
        let site = with_passwords(powa).await;
        site.show("valid").await;
        // What is not allowed with TLS is not looked for without.
        for (other, hba) in [("prefer", ["hostssl", "hostnossl"]), ("allow", ["hostnossl", "hostssl"])] {
            let [password, scram] = hba;
            site.hba(&format!(
                "local all all trust\n{password} all plain all password\n{scram} all plain all scram-sha-256"
            ))
            .await;
            let told = agree(
                &site,
                &format!("user=plain password=right sslmode={other} require_auth=scram-sha-256"),
            )
            .await;
            assert!(told.refusal().contains("authentication by password"), "{told:?}");
        }
        site.hba(PASSWORDS).await;
        for (list, allowed) in [
            ("none", &["trusted"][..]),
            ("password", &["plain"]),
            ("md5", &["hashed"]),
            ("scram-sha-256", &["scrammed"]),
            ("scram-sha-256,md5", &["scrammed", "hashed"]),
            ("password,none", &["plain", "trusted"]),
            ("gss,sspi", &[]),
            ("!none", &["plain", "hashed", "scrammed"]),
            ("!password", &["trusted", "hashed", "scrammed"]),
            ("!password,!md5", &["trusted", "scrammed"]),
            ("!scram-sha-256,!none", &["plain", "hashed"]),
        ] {
            for role in ["trusted", "plain", "hashed", "scrammed"] {
                for mode in ["disable", "require"] {
                    let options = format!("user={role} password=right sslmode={mode} require_auth='{list}'");
                    let outcome = agree(&site, &options).await;
                    if allowed.contains(&role) {
                        assert_ne!(
                            std::mem::discriminant(&outcome),
                            std::mem::discriminant(&refused()),
                            "{options}: {outcome:?}"
                        );
                    } else {
                        let told = outcome.refusal();
                        let words = match role {
                            "trusted" => "asks for no authentication, which require_auth does not allow",
                            "plain" => "authentication by password, which require_auth does not allow",
                            "hashed" => "authentication by md5, which require_auth does not allow",
                            _ => "authentication by scram-sha-256, which require_auth does not allow",
                        };
                        assert!(told.contains(words), "{options}: {told}");
                    }
                }
            }
        }
    }

    async fn whom_the_system_trusts(powa: Powa) {
        let site = Site::new(powa).await_certificate("valid").await;
        let told = agree(&site, "sslrootcert=system sslmode=verify-full").await;
        assert!(told.refusal().contains("the operating system's"), "{told:?}");
        let told = agree(&site, "sslrootcert=system").await;
        assert!(told.refusal().contains("not accepted"), "{told:?}");
        for mode in ["disable", "prefer", "require", "verify-ca"] {
            let told = agree(&site, &format!("sslrootcert=system sslmode={mode}")).await;
            assert!(told.refusal().contains("needs verify-full"), "{told:?}");
        }
    }
}

/// What both do, where that psql knows the option: PostgreSQL 15's does not.
async fn agree(site: &Site, options: &str) -> Outcome {
    if site.cluster.powa().is_v5() { site.both(options).await } else { site.ours(options).await }
}

const PASSWORDS: &str = "local all all trust
    host all scrammed all scram-sha-256
    host all hashed all md5
    host all plain all password
    host all all all trust";

/// A role for each method of authentication, all with the password `right`.
async fn with_passwords(powa: Powa) -> Site {
    let site = Site::with_hba(powa, PASSWORDS);
    site.run(
        "SET password_encryption = 'md5';
         CREATE ROLE hashed LOGIN PASSWORD 'right';
         SET password_encryption = 'scram-sha-256';
         CREATE ROLE scrammed LOGIN PASSWORD 'right';
         CREATE ROLE plain LOGIN PASSWORD 'right';
         CREATE ROLE trusted LOGIN PASSWORD 'right'",
    )
    .await;
    site
}

impl Site {
    async fn await_certificate(self, certificate: &str) -> Site {
        self.show(certificate).await;
        self
    }
}

/// What becomes of each mode, with root certificates and without, with a revocation list and without. Panics
/// where psql does otherwise.
async fn every_mode(powa: Powa, certificate: Option<&str>) -> Vec<(String, Outcome)> {
    let site = Site::new(powa);
    if let Some(certificate) = certificate {
        site.show(certificate).await;
    }
    let mut cases = Vec::new();
    for mode in MODES {
        for root in ["root.crt", "none.crt"] {
            for list in ["", "sslcrl=FILES/root.crl", "sslcrldir=FILES/crl"] {
                cases.push(format!("sslmode={mode} sslrootcert=FILES/{root} {list}"));
            }
        }
    }
    let site = &site;
    let outcomes = stream::iter(cases).map(|options| async move { (site.compare(&options).await, options) });
    let outcomes: Vec<_> = outcomes.buffered(3).collect().await;
    let wrong: Vec<&String> = outcomes.iter().filter_map(|(outcome, _)| outcome.as_ref().err()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    outcomes.into_iter().filter_map(|(outcome, options)| Some((options, outcome.ok()?))).collect()
}

/// Of a certificate that root certificates show to be bad.
fn unacceptable(outcomes: &[(String, Outcome)], reason: &str, advice: &str) {
    assert!(!outcomes.is_empty());
    for (options, outcome) in outcomes {
        let mode = options.split_whitespace().next().unwrap().trim_start_matches("sslmode=");
        match (mode, options.contains("root.crt")) {
            ("disable" | "allow", _) => assert_eq!(*outcome, Plain, "{options}"),
            // It goes on without TLS rather than with this.
            ("prefer", true) => assert_eq!(*outcome, Plain, "{options}"),
            ("prefer" | "require", false) => assert_eq!(*outcome, Encrypted, "{options}"),
            (_, false) => {
                let told = outcome.refusal();
                assert!(told.contains("sslrootcert") && told.contains("none.crt"), "{told}");
                assert!(told.contains("does not exist"), "{told}");
            }
            (_, true) => {
                let told = outcome.refusal();
                assert!(told.contains(reason) && told.contains(advice), "{options}: {told}");
                assert!(told.contains("postgres@localhost:"), "{told}");
            }
        }
    }
}

/// The outcome of the first case whose options have all of this.
fn of(outcomes: &[(String, Outcome)], texts: &[&str]) -> Outcome {
    let mut fitting = outcomes.iter().filter(|(options, _)| texts.iter().all(|text| options.contains(text)));
    fitting.next().expect("a case").1.clone()
}
