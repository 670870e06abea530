//! `aq pull`: an image is made, and its progress shown. A download that this process is asked to
//! end is cancelled; what has come of it stays.

use std::sync::mpsc;

use serde_json::json;

use super::Failure;
use super::files::Tree;
use super::progress::Progress;
use super::run::image::{Chosen, nowhere};
use super::signals;
use super::text::{line, note, size};
use crate::cli::images::Pull;

pub(super) fn run(tree: &Tree, args: &Pull) -> Result<(), Failure> {
    let (to, ends) = mpsc::channel();
    signals::forward(to, |signal| signal)?;
    args.images.iter().try_for_each(|wanted| {
        let name = image(tree, wanted)?;
        let verb = if args.refresh { "refresh" } else { "pull" };
        tree.write(&format!(".images/{name}/ctl"), verb)?;
        let status = follow(tree, &name, &ends, args)?;
        finish(tree, &name, &status, args)
    })
}

/// Returns the name of the image that `alpine`, `alpine:3.22`, an alias or a source stands for, and
/// makes it where there is none.
fn image(tree: &Tree, wanted: &str) -> Result<String, Failure> {
    match tree.image(&wanted.replace(':', "-")) {
        // A distribution that is not listed can be pulled by its name too.
        Err(unknown) if !wanted.contains([':', '/']) => distribution(tree, wanted, unknown),
        Err(_) => Ok(Chosen::find_or_make(tree, wanted)?.name),
        known => known,
    }
}

fn distribution(tree: &Tree, name: &str, unknown: Failure) -> Result<String, Failure> {
    match Chosen::make(tree, name) {
        Err(failure) if [libc::EINVAL, libc::ENOENT].contains(&failure.errno()) => {
            Err(nowhere(unknown))
        }
        made => Ok(made?.name),
    }
}

/// Waits until the image is made, or the user does not want to: then it is cancelled.
fn follow(
    tree: &Tree,
    name: &str,
    ends: &mpsc::Receiver<i32>,
    &Pull { json, refresh, .. }: &Pull,
) -> Result<String, Failure> {
    let file = |file: &str| format!(".images/{name}/{file}");
    let mut shown = Shown { bar: Progress::new(), last: String::new(), json };
    let (mut signal, mut failed) = (None, None);
    let status = tree.awaited(&file("wait"), || {
        let said = tree.read_or_nothing(&file("progress"));
        failed = shown.show(name, said).err();
        signal = signal.or_else(|| ends.try_recv().ok());
        signal.is_none() && failed.is_none()
    })?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let Some(signal) = signal else { return Ok(status.unwrap_or_default()) };
    drop(shown);
    // It may be over at this moment.
    if tree.write(&file("ctl"), "cancel").is_ok() {
        let option = if refresh { "--refresh " } else { "" };
        note(format!("{name}: cancelled; `aq pull {option}{name}` continues where it was"));
    }
    Err(Failure::Reported(signals::exit_code(signal)))
}

/// What the user sees of the progress: a bar on a terminal, else a line for every tenth.
struct Shown {
    bar: Progress,
    last: String,
    json: bool,
}

impl Shown {
    fn show(&mut self, name: &str, said: String) -> Result<(), Failure> {
        if said.is_empty() {
            return Ok(());
        }
        let step = step(&said);
        if step != self.last && self.json {
            line(json!({ "image": name, "progress": said }).to_string())?;
        } else if step != self.last && !console::user_attended_stderr() {
            note(format!("{name}: {said}"));
        }
        self.last = step;
        if !self.json {
            self.bar.show(|| said);
        }
        Ok(())
    }
}

/// What a line is about, and the tenth that is done: lines that differ in less are one.
fn step(said: &str) -> String {
    let what = said.split(": ").next().unwrap_or_default();
    let percent = said.strip_suffix(" %").and_then(|s| s.rsplit(' ').next()?.parse::<u32>().ok());
    match percent {
        Some(percent) => format!("{what} {}", percent / 10),
        None if said.contains("trying again") => said.to_owned(),
        None => what.to_owned(),
    }
}

fn finish(tree: &Tree, name: &str, status: &str, args: &Pull) -> Result<(), Failure> {
    let read = |file: &str| tree.read_or_nothing(&format!(".images/{name}/{file}"));
    let said = read("progress");
    if args.json {
        let inputs: Vec<String> = read("inputs").lines().map(str::to_owned).collect();
        let bytes: u64 = read("size").parse().unwrap_or_default();
        let digest = read("digest");
        let last = json!({ "image": name, "status": status, "digest": digest, "size": bytes, "inputs": inputs, "note": said });
        line(last.to_string())?;
    }
    if status != "ready" {
        let sentence = status.to_owned();
        return Err(Failure::Refused { what: name.to_owned(), sentence, errno: 0 });
    }
    if let Some(reason) = said.strip_prefix("refresh failed: ") {
        let sentence = format!("{reason}; the present image stays");
        return Err(Failure::Refused { what: name.to_owned(), sentence, errno: 0 });
    }
    if !args.json {
        let bytes = size(read("size").parse().unwrap_or_default());
        let said = if said.is_empty() { said } else { format!("; {said}") };
        line(format!("{name}: ready, {bytes}{said}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_a_line_for_every_tenth() {
        assert_eq!(step("x.qcow2: 1M of 9M, 2M/s, 11 %"), step("x.qcow2: 2M of 9M, 3M/s, 19 %"));
        assert_ne!(step("x.qcow2: 1M of 9M, 2M/s, 11 %"), step("x.qcow2: 2M of 9M, 3M/s, 20 %"));
        assert_eq!(step("asking https://x for alpine"), step("asking https://x for alpine"));
    }
}
