//! 1000 servers between their snapshots. The Python collector is not asked: it opens a connection to the
//! repository for each server, and a thousand of them are more than a repository has.

use std::time::{Duration, Instant};

use super::{Bench, Case, Outcome, SINCE_SENDING, UNANSWERED, WITHIN};
use crate::contestant::{Contestant, Who};
use crate::measure::{Questions, megabytes};
use crate::plot::{Line, Plot};
use crate::report::{Bound, Result, median};
use crate::scene::{REPOSITORY, Scene};
use crate::support::Control;

const SERVERS: usize = 1000;
/// Long enough for all of them to have their snapshots in one period.
const PERIOD: i32 = 180;
const TIME: Duration = Duration::from_secs(30);
const MOST: f64 = 64.0;

pub async fn run(bench: &Bench) -> Outcome {
    let case = Case::Idle;
    let scene = Scene::small().await;
    scene.register(SERVERS, PERIOD).await;
    // Those of a thousand servers take a quarter of an hour, and leave nothing that could be measured afterwards.
    scene.without_catalogs().await;
    let (mut memory, mut cores, mut connections, mut stops) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut answers, mut since_sending, mut unanswered) = (Vec::new(), Vec::new(), Vec::new());
    let mut lines = Vec::new();
    for run in 1..=bench.runs {
        let client = scene.fresh().await;
        let contestant = Contestant::start(Who::Ours, &scene.repository);
        let began = Instant::now();
        let mut points = Vec::new();
        let mut look = || points.push((began.elapsed().as_secs_f64(), megabytes(contestant.memory())));
        // Everybody has had a snapshot and has a session: what is measured has done its work.
        let statement = "SELECT count(*) FROM powa_snapshot_metas WHERE srvid > 0 AND coalesce_seq = 1";
        while client.query_one(statement, &[]).await.expect("count the servers").get::<_, i64>(0) > 0 {
            assert!(began.elapsed() < Duration::from_secs(600), "not every server has a snapshot");
            look();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        client.batch_execute("UPDATE powa_servers SET frequency = 86400 WHERE id > 0").await.expect("update");
        let mut control = Control::connect(&scene.repository, REPOSITORY).await;
        control.ask("RELOAD", "").await;
        // Each of them looks at its versions again.
        tokio::time::sleep(Duration::from_secs(10)).await;

        let (before, at) = (contestant.cpu(), Instant::now());
        while at.elapsed() < TIME {
            look();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let core = 100.0 * (contestant.cpu() - before).as_secs_f64() / at.elapsed().as_secs_f64();
        let statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'PoWA collector%'";
        let open: i64 = client.query_one(statement, &[]).await.expect("count the sessions").get(0);
        let sessions: i64 = {
            let server = scene.monitored.client("postgres").await;
            server.query_one(statement, &[]).await.expect("count the sessions").get(0)
        };
        assert!(usize::try_from(sessions).is_ok_and(|sessions| sessions >= SERVERS), "{sessions} sessions");
        let until = Instant::now() + Duration::from_secs(15);
        let questions = Questions::ask(&scene.repository, REPOSITORY, until).await;
        let peak = megabytes(contestant.peak_memory());
        let stop = contestant.stop(Duration::from_secs(20)).await;
        let stop = stop.map_or(f64::INFINITY, |stop| stop.as_secs_f64());
        eprintln!(
            "  run {run}: {peak:.0} MB, {core:.2} % of a core, {open} connections, stop {stop:.1} s, answers in {:.0} ms",
            questions.within_ms()
        );
        memory.push(peak);
        cores.push(core);
        #[allow(clippy::cast_precision_loss)]
        connections.push(open as f64);
        stops.push(stop);
        answers.push(questions.within_ms());
        since_sending.push(questions.since_sending_ms());
        #[allow(clippy::cast_precision_loss)]
        unanswered.push(questions.unanswered as f64);
        if lines.is_empty() {
            lines.push(Line { name: "powa-collector", points });
        }
    }
    let result =
        |what, bound, values: Vec<f64>| Result::alone(case, what, bound, median(values).unwrap_or(f64::NAN));
    let results = vec![
        result("peak memory, first snapshots included, MB", Bound::AtMost(MOST), memory),
        result("CPU, % of a core", Bound::AtMost(1.0), cores),
        result("connections to the repository", Bound::AtMost(10.0), connections),
        result("stop, s", Bound::AtMost(2.0), stops),
        result(WITHIN, Bound::AtMost(50.0), answers),
        result(SINCE_SENDING, Bound::Shown, since_sending),
        result(UNANSWERED, Bound::AtMost(0.0), unanswered),
    ];
    let title = "Memory: 1000 servers, their first snapshots and then idle".to_owned();
    let bound = Some((format!("{MOST} MB"), MOST));
    Outcome { results, plot: Plot { title, x: "seconds", y: "MB resident", lines, bound } }
}
