//! A `Procfile`: one process a line, `web: gunicorn app:app --bind 0.0.0.0:$PORT`.
//!
//! Source: Heroku, "The Procfile": `<process type>: <command>`, the command as in a shell. So a shell reads it
//! here too, with the same variables.

use crate::document::quoted;

/// The command of the line `web`; `None` where there is none.
///
/// # Errors
/// Where there are two, or one without a command.
pub fn web(text: &str) -> Result<Option<Vec<String>>, String> {
    let mut found = processes(text).filter(|(name, _)| *name == "web");
    let Some((_, command)) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err("it has two lines for `web`: one is expected".into());
    }
    if command.is_empty() {
        return Err("its line `web` has no command".into());
    }
    Ok(Some(["sh", "-c", command].map(str::to_owned).into()))
}

/// Names and commands of its lines.
pub fn processes(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    text.lines().filter_map(move |line| {
        let (name, command) = line.split_once(':')?;
        is_name(name.trim()).then(|| (name.trim(), command.trim()))
    })
}

/// `text`, a contract without a command, with this one in its `[process]`. `None` where that table is written
/// so that nothing can be put into it: inline, or as dotted keys.
pub fn with_command(text: &str, command: &[String]) -> Option<String> {
    let items: Vec<_> = command.iter().map(|item| quoted(item)).collect();
    let line = format!("command = [{}]\n", items.join(", "));
    let mut out = String::with_capacity(text.len() + line.len() + 16);
    let mut put = false;
    for part in text.split_inclusive('\n') {
        out.push_str(part);
        let code = part.split('#').next().unwrap_or_default();
        if !put && code.split_whitespace().collect::<String>() == "[process]" {
            if !part.ends_with('\n') {
                out.push('\n');
            }
            out.push_str(&line);
            put = true;
        }
    }
    if !put {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&format!("\n[process]\n{line}"));
    }
    // A line in a string of several lines looks like a table's.
    let read: toml::Table = out.parse().ok()?;
    let there = read.get("process")?.get("command")?.as_array()?;
    let same = there.iter().map(|item| item.as_str()).eq(command.iter().map(|c| Some(c.as_str())));
    same.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_web_line_is_a_shells() {
        let command = |line: &str| Ok(Some(["sh", "-c", line].map(str::to_owned).to_vec()));
        for (text, wanted) in [
            (
                "web: gunicorn app:app -b :$PORT\nworker: celery -A x\n",
                "gunicorn app:app -b :$PORT",
            ),
            (
                "# said\r\n\r\nrelease: ./migrate\r\n web:./run \"a b\" && true\r\n",
                "./run \"a b\" && true",
            ),
        ] {
            assert_eq!(web(text), command(wanted), "{text}");
        }
        assert_eq!(web("worker: a\nwebsite: b\nno line\n"), Ok(None));
        assert!(web("web: a\nweb: b").is_err() && web("web:").is_err());
    }

    #[test]
    fn a_command_is_put_into_its_table() {
        let command = vec!["sh".to_owned(), "-c".to_owned(), "a \"b\" \\ $PORT\u{7}".to_owned()];
        for text in [
            "[app]\nname = \"a\"",
            "",
            "[process] # here\nready = { path = \"/\" }\n[wake]\nbudget = \"1s\"\n",
            "[process]",
            "[process.env]\nA = \"1\"\n",
            "[app]\nname = '''\n[x]\n'''\n [ process ]\n",
        ] {
            let out = with_command(text, &command).unwrap_or_else(|| panic!("{text}"));
            let read: toml::Table = out.parse().unwrap();
            let there = read["process"]["command"].as_array().unwrap();
            assert_eq!(there[2].as_str(), Some(&*command[2]), "{out}");
        }
        for text in [
            "process = { ready = { tcp = true } }",
            "process.ready.tcp = true\n",
            "[process",
            "a = '''\n[process]\n'''\n",
        ] {
            assert_eq!(with_command(text, &command), None, "{text}");
        }
    }
}
