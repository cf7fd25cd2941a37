//! Apps in Python: Django, FastAPI and its like, Flask, Streamlit, Gradio, or a program.

use super::folder::Folder;
use super::found::{Assets, Found};

/// How its packages are there.
struct Packages {
    /// The virtual environment, made or to be made; `None` where none is needed.
    venv: Option<String>,
    /// Everything that names a package, in lower case.
    named: String,
    before: Vec<String>,
}

const REQUIREMENTS: &[&str] = &["requirements.txt", "pyproject.toml", "Pipfile", "setup.py"];

pub fn look(folder: &Folder) -> Option<Found> {
    let declared = folder.first(REQUIREMENTS);
    let is_django = folder.has("manage.py") && folder.text("manage.py").contains("DJANGO");
    if declared.is_none() && folder.files("", "py").is_empty() && !is_django {
        return None;
    }
    let packages = packages(folder, declared);
    let has = |name: &str| names(&packages.named, name);
    let found = if is_django {
        django(folder, has("gunicorn"))
    } else if let Some((module, name, by)) =
        object(folder, &["FastAPI(", "Starlette(", "Litestar("])
    {
        asgi(by.trim_end_matches('('), &format!("{module}:{name}"))
    } else if has("streamlit") {
        streamlit(folder)?
    } else if let Some((module, name, _)) = object(folder, &["Flask("]) {
        flask(&module, &format!("{module}:{name}"), has("gunicorn"))
    } else {
        program(folder, has("gradio"))?
    };
    let mut found = found;
    let python = packages.venv.as_ref().map_or("python3".into(), |v| format!("{v}/bin/python"));
    for command in &mut found.before {
        *command = command.replace("PYTHON", &python);
    }
    found.before.splice(0..0, packages.before);
    match packages.venv {
        Some(venv) => found.path = vec![format!("{venv}/bin")],
        // The system's own.
        None => {
            if let Some(first) = found.command.first_mut().filter(|first| *first == "python") {
                *first = "python3".into();
            }
        }
    }
    Some(found)
}

/// Whether `text` has `name` as a word of its own, as lists of requirements do.
fn names(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part)
    })
}

fn packages(folder: &Folder, declared: Option<&'static str>) -> Packages {
    let mut named: String = REQUIREMENTS.iter().map(|file| folder.text(file)).collect();
    let is_venv = |name: &&str| folder.has(&format!("{name}/pyvenv.cfg"));
    let there = [".venv", "venv", "env"].into_iter().find(is_venv);
    if let Some(venv) = there {
        // What is installed counts, too: `gunicorn-23.0.0.dist-info`.
        for lib in
            std::fs::read_dir(folder.path(&format!("{venv}/lib"))).into_iter().flatten().flatten()
        {
            let site =
                std::fs::read_dir(lib.path().join("site-packages")).into_iter().flatten().flatten();
            let dist = site.filter_map(|e| e.file_name().into_string().ok());
            for name in dist.filter_map(|name| Some(name.split_once('-')?.0.to_owned())) {
                named.push_str(&format!("\n{name}\n"));
            }
        }
    }
    let named = named.to_lowercase();
    let install = match declared {
        Some("requirements.txt") => "-r requirements.txt",
        Some("Pipfile") => "-r <(pipenv requirements)",
        _ => ".",
    };
    let Some(venv) = there.or(declared.map(|_| ".venv")) else {
        return Packages { venv: None, named, before: Vec::new() };
    };
    // Links to a Python elsewhere cannot go into an artifact.
    let python = folder.path(&format!("{venv}/bin/python"));
    let linked = std::fs::read_link(&python).is_ok_and(|to| to.is_absolute());
    let mut before = Vec::new();
    if !python.is_file() || linked {
        let clear = if linked { " --clear" } else { "" };
        before.push(format!("python3 -m venv --copies{clear} {venv}"));
        if declared.is_some() {
            before.push(format!("{venv}/bin/python -m pip install {install}"));
        }
    }
    Packages { venv: Some(venv.to_owned()), named, before }
}

/// The module and name of the object that a framework makes: `app = FastAPI()`.
fn object<'b>(folder: &Folder, made_by: &[&'b str]) -> Option<(String, String, &'b str)> {
    let first = [
        "main.py",
        "app.py",
        "app/main.py",
        "src/main.py",
        "wsgi.py",
        "asgi.py",
        "app/__init__.py",
    ];
    let mut files: Vec<String> =
        first.iter().filter(|f| folder.has(f)).map(|f| (*f).to_owned()).collect();
    files.extend(folder.files("", "py"));
    for dir in folder.dirs() {
        files.extend(folder.files(&dir, "py"));
    }
    for file in files {
        for line in folder.text(&file).lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            let name = name.split(':').next().unwrap_or_default();
            let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.trim_end().chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let value = value.trim_start();
            let of = |by: &&&str| value.starts_with(**by) || value.contains(&format!(".{by}"));
            let Some(made) = made_by.iter().find(of) else { continue };
            if is_name && !value.starts_with(['"', '\'']) {
                let module = file.trim_end_matches(".py").trim_end_matches("/__init__");
                return Some((module.replace('/', "."), name.trim().to_owned(), made));
            }
        }
    }
    None
}

fn asgi(made_by: &str, object: &str) -> Found {
    let what = format!("an app in {made_by} ({object}), served by uvicorn");
    let command = ["python", "-m", "uvicorn", object, "--host", "127.0.0.1", "--port", "$PORT"];
    Found::new(what, &command)
        .about("uvicorn believes what the edge says of the client: it comes from 127.0.0.1.")
}

fn flask(module: &str, object: &str, gunicorn: bool) -> Found {
    if gunicorn {
        let what = format!("a Flask app ({object}), served by gunicorn");
        return Found::new(
            what,
            &["python", "-m", "gunicorn", "--bind", "127.0.0.1:$PORT", object],
        );
    }
    let command = ["python", "-m", "flask", "--app", module, "run", "--port", "$PORT"];
    Found::new(format!("a Flask app ({object}), served by Flask's own server"), &command)
        .note("Flask's own server is for development: put gunicorn into the requirements and run `init` again")
}

fn streamlit(folder: &Folder) -> Option<Found> {
    let files = folder.files("", "py");
    let first = ["streamlit_app.py", "app.py", "main.py"].iter().find(|f| folder.has(f));
    let of_it = files.iter().find(|f| folder.text(f).contains("streamlit"));
    let file = first.map(|f| (*f).to_owned()).or(of_it.cloned())?;
    let mut found = Found::new(
        format!("a Streamlit app ({file})"),
        &[
            "python",
            "-m",
            "streamlit",
            "run",
            &file,
            "--server.address",
            "127.0.0.1",
            "--server.port",
            "$PORT",
            "--server.headless",
            "true",
        ],
    );
    found.ready = Some("/_stcore/health".into());
    found.tables.push(live("/_stcore/stream", "Its pages are driven over a socket."));
    Some(found)
}

/// A route that carries sockets.
pub fn live(path: &str, about: &str) -> String {
    format!("# {about}\n[[route]]\npath = \"{path}\"\nclass = \"live\"")
}

fn program(folder: &Folder, gradio: bool) -> Option<Found> {
    let file = folder.first(&["app.py", "main.py", "server.py", "run.py"])?;
    let text = folder.text(file);
    if gradio {
        let found = Found::new(format!("a Gradio app ({file})"), &["python", file]);
        return Some(
            found.env("GRADIO_SERVER_NAME", "127.0.0.1").env("GRADIO_SERVER_PORT", "$PORT"),
        );
    }
    let found = Found::new(format!("a program in Python ({file})"), &["python", "-u", file]);
    Some(match text.contains("PORT") {
        true => found,
        false => found.note(format!(
            "{file} does not read PORT: let it listen on 127.0.0.1 and int(os.environ[\"PORT\"])"
        )),
    })
}

/// The value of `NAME = …` in a settings module, as it is written.
fn setting<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.trim_start().strip_prefix('=')?;
        Some(value.split('#').next().unwrap_or_default().trim())
    })
}

/// The last string in an expression: `BASE_DIR / "static"`, `os.path.join(BASE_DIR, 'static')`.
fn last_string(value: &str) -> Option<&str> {
    value.split(['"', '\'']).filter(|part| !part.is_empty()).nth_back(
        // What follows the last quote is no string.
        usize::from(!value.ends_with(['"', '\''])),
    )
}

fn django(folder: &Folder, gunicorn: bool) -> Found {
    let manage = folder.text("manage.py");
    let module = manage.split("DJANGO_SETTINGS_MODULE").nth(1);
    let module = module.and_then(|rest| rest.split(['"', '\'']).find(|s| s.len() > 2));
    let module = module.unwrap_or("config.settings");
    let package = module.strip_suffix(".settings").unwrap_or(module).split(".settings").next();
    let wsgi = format!("{}.wsgi", package.unwrap_or(module));
    let mut found = if gunicorn {
        let what = format!("a Django project ({module}), served by gunicorn");
        Found::new(what, &["python", "-m", "gunicorn", "--bind", "127.0.0.1:$PORT", &wsgi])
    } else {
        let what = format!("a Django project ({module}), served by Django's own server");
        let command = ["python", "manage.py", "runserver", "--noreload", "127.0.0.1:$PORT"];
        Found::new(what, &command).note(
            "`runserver` is for development: put gunicorn into the requirements and run `init` again",
        )
    };
    let file = format!("{}.py", module.replace('.', "/"));
    let settings = folder.text(&file);
    if settings.contains("sqlite3") {
        found = found.writes("SQLite").note(format!(
            "{file} keeps its SQLite database beside the code, where each sleep takes what was written: name a \
             file below os.environ[\"HOME\"], which stays"
        ));
    }
    if setting(&settings, "ALLOWED_HOSTS").is_some_and(|hosts| hosts.replace(' ', "") == "[]")
        && setting(&settings, "DEBUG") == Some("False")
    {
        found =
            found.note(format!("{file}: ALLOWED_HOSTS is empty: name the hosts of the app there"));
    }
    let root =
        setting(&settings, "STATIC_ROOT").and_then(last_string).filter(|r| !r.starts_with('/'));
    match root {
        Some(root) => {
            let url = setting(&settings, "STATIC_URL").and_then(last_string).unwrap_or("static/");
            let hashed = settings.contains("ManifestStaticFilesStorage");
            found = found.before("PYTHON manage.py collectstatic --noinput");
            found.assets(Some(Assets {
                dir: root.trim_matches('/').to_owned(),
                prefix: format!("/{}/", url.trim_matches('/')),
                manifest: hashed.then(|| format!("{}/staticfiles.json", root.trim_matches('/'))),
                about: "What `manage.py collectstatic` collects".into(),
                ..Assets::default()
            }))
        }
        None if gunicorn => found.note(format!(
            "{file} has no STATIC_ROOT: with one, `manage.py collectstatic` collects static files there and the \
             edge answers for them; gunicorn serves none"
        )),
        None => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        let text = "STATIC_ROOT = BASE_DIR / \"all\"  # there\nSTATIC_URL='s/'\nX = os.path.join(B, 'y')\n";
        let last = |name| setting(text, name).and_then(last_string);
        assert_eq!(
            (last("STATIC_ROOT"), last("STATIC_URL"), last("X")),
            (Some("all"), Some("s/"), Some("y"))
        );
        assert!(setting(text, "STATIC").is_none());
        assert!(names("flask==3\ngunicorn", "gunicorn") && names("\"gunicorn>=2\"", "gunicorn"));
        assert!(!names("my-gunicorn gunicorn-x", "gunicorn"));
    }
}
