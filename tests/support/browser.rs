//! A real browser: headless Chromium, steered over the WebDriver protocol (<https://www.w3.org/TR/webdriver2/>) by its
//! own driver. Both come from Debian (`tests/support/postgresql pages`).

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use hyper::Method;
use nix::unistd::Uid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{DEADLINE, http, process, wait_until};

/// A browser with one window. It ends when dropped.
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    _profile: TempDir,
}

impl Browser {
    pub async fn start() -> Browser {
        // In a namespace of its own, so that what the browser starts ends with it, also when this process is killed.
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--pdeathsig=KILL", "/usr/bin/unshare"]);
        if !Uid::effective().is_root() {
            command.args(["--user", "--map-current-user"]);
        }
        command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "chromedriver", "--port=0"]);
        command.stdout(Stdio::piped());
        let mut driver = process::spawn(command).expect("run chromedriver");
        let mut lines = BufReader::new(driver.stdout.take().expect("stdout is piped")).lines();
        let port = tokio::task::spawn_blocking(move || {
            lines.by_ref().map_while(Result::ok).find_map(|line| {
                Some(line.split_once("started successfully on port ")?.1.trim_end_matches('.').to_owned())
            })
        });
        let port = port.await.expect("no panic while reading").expect("chromedriver says its port");
        let address = format!("127.0.0.1:{port}");
        let profile = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a profile");
        let arguments = json!([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--window-size=1280,800",
            format!("--user-data-dir={}", profile.path().display()),
        ]);
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let mut browser = Browser { driver, address, session: String::new(), _profile: profile };
        let session = browser.ask(Method::POST, "/session", capabilities).await;
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    pub async fn open(&self, url: &str) {
        self.post("url", json!({ "url": url })).await;
    }

    /// What the body of a function in JavaScript returns.
    pub async fn run(&self, script: &str) -> Value {
        self.post("execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Waits until the body of a function in JavaScript returns something true.
    pub async fn wait_for(&self, script: &str) -> Value {
        wait_until(script, DEADLINE, async || {
            let value = self.run(script).await;
            (value != Value::Null && value != json!(false)).then_some(value)
        })
        .await
    }

    /// Sees pages as somebody who likes `light` or `dark` ones.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.post("goog/cdp/execute", command).await;
    }

    /// What the console has: errors of scripts, of loading, and of what the page's policy forbids.
    pub async fn console(&self) -> Vec<Value> {
        let log = self.post("se/log", json!({ "type": "browser" })).await;
        log.as_array().expect("a log").clone()
    }

    /// The window as a picture, PNG in Base64.
    pub async fn picture(&self) -> String {
        let path = format!("/session/{}/screenshot", self.session);
        self.ask(Method::GET, &path, Value::Null).await.as_str().expect("a picture").to_owned()
    }

    async fn post(&self, command: &str, body: Value) -> Value {
        self.ask(Method::POST, &format!("/session/{}/{command}", self.session), body).await
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("content-type", "application/json")];
        let asking = http::request(method, &self.address, path, &headers, body);
        let page = tokio::time::timeout(2 * DEADLINE, asking).await.expect("chromedriver answers");
        let page = page.expect("chromedriver answers");
        assert!(page.status.is_success(), "{path}: {}", page.body);
        page.json()["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.driver.kill().ok();
        self.driver.wait().ok();
    }
}
