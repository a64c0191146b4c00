//! The page, as people see it: in a real browser.

mod fleet;
mod support;

use std::fs;
use std::path::Path;

use fleet::{Fleet, cluster, monitored, register_idle};
use serde_json::{Value, json};
use support::browser::Browser;
use support::{DEADLINE, Powa, Registration, on_both_versions, register_server, wait_until};

/// What somebody calls a server who wants the page to do something.
const HOSTILE: &str =
    "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>";

const NAMES: &str = "return [...document.querySelectorAll('#fleet .name')].map((cell) => cell.textContent)";

on_both_versions! {
    async fn the_page_shows_the_fleet_live_with_problems_on_top(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        for (number, alias) in [(1, "a-first"), (2, HOSTILE)] {
            register_idle(&repository, monitored(&cluster, number).alias(alias)).await;
        }
        let nowhere = Registration::new("127.0.1.3", 1).dbname("monitored").frequency(5).alias("z-away");
        register_server(&repository, &nowhere).await;
        let keys = json!({ "http": { "listen": "127.0.0.1:0" }, "use_server_alias": true });
        let mut fleet = Fleet::of(cluster, repository, keys).await;
        let states = r#"{"1": "running", "2": "running", "3": "no connection to remote server"}"#;
        fleet.wait_for_states(states).await;
        let line = fleet.collector.wait_for_log("http: serves pages at ").await;
        let url = line.split_once("serves pages at ").unwrap().1;

        let browser = Browser::start().await;
        browser.open(url).await;
        browser.wait_for("return document.querySelectorAll('#fleet .name').length == 3").await;
        assert_eq!(browser.run(NAMES).await, json!(["z-away", HOSTILE, "a-first"]));
        let row = "const [row, error] = document.querySelectorAll('#fleet tr')";
        assert_eq!(browser.run(&format!("{row}; return row.className")).await, "ill");
        let cells = browser.run(&format!("{row}; return [...row.cells].map((cell) => cell.textContent)")).await;
        assert_eq!(cells[1], "no connection to remote server", "{cells}");
        let error = browser.run(&format!("{row}; return error.hidden ? '' : error.textContent")).await;
        assert!(error.as_str().unwrap().contains("no connection to the monitored server"), "{error}");
        assert_eq!(browser.run("return document.title").await, "(1) powa-collector");
        assert_eq!(browser.run("return document.querySelectorAll('img, #fleet script').length").await, 0);
        let figures = "return ['servers', 'problems'].map((id) => document.getElementById(id).textContent)";
        assert_eq!(browser.run(figures).await, json!(["3", "1"]));
        // Its snapshots have been due for more than its five seconds.
        browser.wait_for("return document.getElementById('lag').classList.contains('bad')").await;

        // It is live: a snapshot appears, and a server that comes and one that goes, without anything being loaded again.
        browser.run("window.isSame = true").await;
        let of_first = "const row = [...document.querySelectorAll('#fleet tr')].find((row) => row.cells[0].textContent == 'a-first')";
        assert_eq!(browser.run(&format!("{of_first}; return row.cells[2].textContent")).await, "–");
        fleet.force(1).await;
        browser.wait_for(&format!("{of_first}; return row.cells[2].textContent.includes(' ago, took ')")).await;
        let bars = browser.run(&format!("{of_first}; return row.querySelector('path').getAttribute('d')")).await;
        assert_eq!(bars.as_str().unwrap().matches('M').count(), 1, "{bars}");
        let rows = browser.run(&format!("{of_first}; return row.cells[5].textContent")).await;
        assert!(rows.as_str().unwrap().replace(',', "").parse::<u64>().unwrap() > 0, "{rows}");
        fleet.execute("UPDATE powa_servers SET frequency = -1 WHERE id = 3").await;
        fleet.ask("RELOAD", "").await;
        browser.wait_for("return document.querySelectorAll('#fleet .name').length == 2").await;
        assert_eq!(browser.run("return [window.isSame, document.title]").await, json!([true, "powa-collector"]));

        // Some of them.
        let search = |text: &str| {
            format!(
                "const search = document.getElementById('search'); search.value = {text:?}; \
                 search.dispatchEvent(new Event('input'))"
            )
        };
        browser.run(&search("A-FIR")).await;
        assert_eq!(browser.run(NAMES).await, json!(["a-first"]));
        browser.run(&search("nobody has this")).await;
        assert_eq!(browser.run("return document.getElementById('nothing').hidden").await, false);
        browser.run(&search("")).await;
        assert_eq!(browser.run(NAMES).await, json!([HOSTILE, "a-first"]));

        // Neither the page's policy nor a script has complained.
        assert_eq!(browser.console().await, Vec::<Value>::new());

        for scheme in ["light", "dark"] {
            browser.prefer(scheme).await;
            let ground = "return getComputedStyle(document.body).backgroundColor";
            let (is, light) = (browser.run(ground).await, "rgb(246, 247, 249)");
            assert_eq!(is == light, scheme == "light", "{scheme}: {is}");
            keep(&format!("page-{scheme}"), &browser.picture().await);
        }

        // A repository that is away, and a collector that is gone, are said.
        let alarm =
            "return document.getElementById('alarm').hidden ? '' : document.getElementById('alarm').textContent";
        assert_eq!(browser.run(alarm).await, "");
        fleet.cluster.stop();
        browser
            .wait_for("return document.getElementById('alarm').textContent.includes('waits for the repository')")
            .await;
        fleet.collector.stop().await;
        browser.wait_for("return document.getElementById('alarm').textContent.includes('does not answer')").await;
        wait_until("what was there is still shown", DEADLINE, async || {
            browser.run(NAMES).await == json!([HOSTILE, "a-first"])
        })
        .await;
    }
}

/// Where somebody can look at it.
fn keep(name: &str, picture: &str) {
    let png = openssl::base64::decode_block(picture).expect("a picture");
    assert!(png.starts_with(b"\x89PNG"));
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png")), png)
        .expect("keep the picture");
}
