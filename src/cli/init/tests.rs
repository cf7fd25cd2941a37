//! What `init` takes folders for, and the contracts that it writes.

use std::path::Path;

use super::*;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("shop-").tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// What it is taken for; the contract that is written for it can be read.
fn found(files: &[(&str, &str)]) -> Found {
    let dir = folder(files);
    let found = look(dir.path()).unwrap_or_else(|| panic!("{files:?}"));
    let text = found.contract(&"shop".parse().unwrap());
    let read = contract::parse(Path::new(CONTRACT), &text);
    let contract = read.unwrap_or_else(|e| panic!("{e:?} in:\n{text}"));
    assert_eq!(
        (contract.process.command, contract.process.path),
        (found.command.clone(), found.path.clone())
    );
    assert_eq!(contract.process.scratch, found.writes.is_some());
    assert_eq!(contract.is_static, found.is_site());
    found
}

fn command(files: &[(&str, &str)]) -> String {
    found(files).command.join(" ")
}

const MANAGE: (&str, &str) =
    ("manage.py", "os.environ.setdefault(\"DJANGO_SETTINGS_MODULE\", \"site1.settings\")\n");

#[test]
fn django_is_served_by_gunicorn_where_that_is_asked_for() {
    let settings = "DEBUG = True\nSTATIC_URL = 'static/'\nSTATIC_ROOT = BASE_DIR / 'collected'\n\
                    'ENGINE': 'django.db.backends.sqlite3',\n\
                    x = 'django.contrib.staticfiles.storage.ManifestStaticFilesStorage'\n";
    let mut files = vec![MANAGE, ("site1/settings.py", settings), ("requirements.txt", "Django\n")];
    let own = found(&files);
    let wanted = "python manage.py runserver --noreload 127.0.0.1:$PORT";
    assert_eq!((&*own.command.join(" "), &own.path[..]), (wanted, &[".venv/bin".to_owned()][..]));
    files[2].1 = "Django\ngunicorn==23\n";
    let found = found(&files);
    assert_eq!(found.command.join(" "), "python -m gunicorn --bind 127.0.0.1:$PORT site1.wsgi");
    let assets = found.assets.unwrap();
    assert_eq!((&*assets.dir, &*assets.prefix), ("collected", "/static/"));
    assert_eq!(assets.manifest.as_deref(), Some("collected/staticfiles.json"));
    assert_eq!(
        found.before,
        [
            "python3 -m venv --copies .venv",
            ".venv/bin/python -m pip install -r requirements.txt",
            ".venv/bin/python manage.py collectstatic --noinput"
        ]
    );
    assert!(
        found.writes.is_some() && found.notes.iter().any(|n| n.contains("HOME")),
        "{:?}",
        found.notes
    );
}

#[test]
fn apps_in_python_are_found_by_the_object_that_they_make() {
    let requirements = ("requirements.txt", "fastapi\nuvicorn\n");
    assert_eq!(
        command(&[
            requirements,
            ("app/main.py", "from fastapi import FastAPI\napi: FastAPI = FastAPI()\n")
        ]),
        "python -m uvicorn app.main:api --host 127.0.0.1 --port $PORT"
    );
    let flask = ("hello.py", "import flask\napp = flask.Flask(__name__)\n");
    assert_eq!(
        command(&[("requirements.txt", "flask\ngunicorn\n"), flask]),
        "python -m gunicorn --bind 127.0.0.1:$PORT hello:app"
    );
    assert_eq!(
        command(&[("requirements.txt", "flask\n"), flask]),
        "python -m flask --app hello run --port $PORT"
    );
    let streamlit = found(&[("requirements.txt", "streamlit\n"), ("app.py", "import streamlit\n")]);
    assert_eq!(streamlit.ready.as_deref(), Some("/_stcore/health"));
    // Without packages the system's Python is enough, and a fixed port is told of.
    let plain = found(&[("server.py", "HTTPServer(('', 8000)).serve_forever()\n")]);
    assert_eq!((plain.command.join(" "), plain.path.len()), ("python3 -u server.py".into(), 0));
    assert!(plain.notes[0].contains("does not read PORT"), "{:?}", plain.notes);
    // Links to a Python elsewhere are refused at a deploy.
    let dir = folder(&[
        requirements,
        ("main.py", "app = FastAPI()\n"),
        ("venv/pyvenv.cfg", ""),
        ("venv/bin/x", ""),
    ]);
    std::os::unix::fs::symlink("/usr/bin/python3", dir.path().join("venv/bin/python")).unwrap();
    let found = look(dir.path()).unwrap();
    assert_eq!(
        (&*found.path[0], &*found.before[0]),
        ("venv/bin", "python3 -m venv --copies --clear venv")
    );
}

#[test]
fn apps_of_node_are_started_without_npm_where_that_can_be() {
    let next = found(&[
        (
            "package.json",
            r#"{"scripts": {"build": "next build", "start": "next start"},
        "dependencies": {"next": "15"}}"#,
        ),
        ("package-lock.json", "{}"),
    ]);
    assert_eq!(
        next.command.join(" "),
        "node node_modules/next/dist/bin/next start --hostname 127.0.0.1 --port $PORT"
    );
    assert_eq!(next.before, ["npm ci", "npm run build"]);
    assert_eq!(next.assets.unwrap().prefix, "/_next/static/");
    let express =
        r#"{"scripts": {"start": "node ./src/index.js"}, "dependencies": {"express": "5"}}"#;
    let found_ = found(&[("package.json", express), ("src/index.js", "app.listen(3000)\n")]);
    assert_eq!(
        (found_.command.join(" "), &found_.before[..]),
        ("node ./src/index.js".into(), &["npm install".to_owned()][..])
    );
    assert!(found_.notes.iter().any(|n| n.contains("does not read PORT")), "{:?}", found_.notes);
    let script = r#"{"scripts": {"start": "A=1 tsx server.ts && true"}}"#;
    assert_eq!(command(&[("package.json", script)]), "npm run --silent start");
    assert_eq!(
        command(&[("package.json", "{}"), ("server.js", "process.env.PORT")]),
        "node server.js"
    );
    let vite = r#"{"scripts": {"build": "vite build"}, "devDependencies": {"vite": "6"}}"#;
    let vite = found(&[("package.json", vite)]);
    let assets = vite.assets.as_ref().unwrap();
    assert_eq!((vite.is_site(), &*assets.dir, &*assets.prefix), (true, "dist", "/"));
    assert_eq!((assets.fallback.as_deref(), assets.immutable.len()), (Some("index.html"), 2));
    assert_eq!(vite.before, ["npm install", "npm run build"]);
}

#[test]
fn other_languages_are_known_by_their_files() {
    let go = found(&[
        ("go.mod", "module example.com/me/hello\n"),
        ("main.go", "package main\nos.Getenv(\"PORT\")\n"),
    ]);
    assert_eq!(
        (go.command.join(" "), &*go.before[0]),
        ("./hello".into(), "CGO_ENABLED=0 go build -o hello .")
    );
    let vango = found(&[
        ("go.mod", "module x/app\nrequire github.com/vango-go/vango v1\n"),
        ("cmd/server/main.go", "package main\n"),
        ("vango_state_schema.json", "{}"),
        ("dist/manifest.json", "{}"),
    ]);
    assert!(vango.what.contains("Vango") && vango.tables.len() == 2, "{vango:?}");
    assert_eq!(vango.before, ["CGO_ENABLED=0 go build -o app ./cmd/server"]);
    assert_eq!(
        command(&[("Cargo.toml", "[package]\nname = \"hi\"\n"), ("src/main.rs", "")]),
        "./target/release/hi"
    );
    assert_eq!(command(&[("public/index.php", "")]), "php -S 127.0.0.1:$PORT -t public");
    let rails = found(&[
        ("Gemfile", "gem 'rails'"),
        ("config/application.rb", ""),
        ("config/credentials.yml.enc", ""),
    ]);
    assert_eq!((&*rails.secrets[0], &*rails.command[2]), ("RAILS_MASTER_KEY", "rails"));
    assert_eq!(command(&[("config.ru", "run A")]), "rackup -o 127.0.0.1 -p $PORT");
    let site = found(&[("public/index.html", "<p>"), ("public/404.html", "<p>")]);
    assert!(site.is_site() && site.notes.is_empty(), "{site:?}");
    let assets = site.assets.unwrap();
    assert_eq!((&*assets.dir, assets.not_found.as_deref()), ("public", Some("404.html")));
    let all = found(&[("index.html", "<p>")]);
    assert!(all.is_site() && all.notes[0].contains("every file"), "{:?}", all.notes);
    let hugo = found(&[("hugo.toml", "title = 'x'\n"), ("content/a.md", "")]);
    assert!(hugo.is_site() && hugo.before == ["hugo"], "{hugo:?}");
    assert!(look(folder(&[("README.md", "")]).path()).is_none());
}

#[test]
fn procfiles_and_dockerfiles_say_a_command_too() {
    let procfile = ("Procfile", "release: ./migrate\nweb: gunicorn app:app -b 0.0.0.0:$PORT\n");
    let heroku =
        found(&[procfile, ("requirements.txt", "flask\ngunicorn\n"), ("app.py", "app = Flask(1)")]);
    assert_eq!(heroku.command.join(" "), "python -m gunicorn app:app -b 0.0.0.0:$PORT");
    assert_eq!((&*heroku.path[0], heroku.before.len()), (".venv/bin", 2));
    assert!(heroku.notes[0].contains("release"), "{:?}", heroku.notes);
    let shell = found(&[("Procfile", "web: A=1 ./run ${PORT:-80} && true\n")]);
    assert_eq!(shell.command, ["sh", "-c", "A=1 ./run ${PORT:-80} && true"]);
    let docker = "FROM x\nEXPOSE 3000/tcp\nENTRYPOINT [\"./run\"]\nCMD [\"--listen=:3000\", \"--cost=$5\"]\n";
    assert_eq!(
        found(&[("Dockerfile", docker)]).command,
        ["./run", "--listen=:$PORT", "--cost=$$5"]
    );
}

#[test]
fn nothing_that_is_there_is_written_over() {
    let dir = folder(&[("server.js", "process.env.PORT"), ("package.json", "{}")]);
    let edge = tempfile::tempdir().unwrap();
    let config = edge.path().join("conf/edge.toml");
    init(dir.path(), Some(&config), None, true).unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let written = read(&dir.path().join(CONTRACT));
    let loaded = crate::config::load(&config).unwrap();
    let app = loaded.apps.values().next().unwrap();
    assert!(app.name.as_str().starts_with("shop-"), "{}", app.name);
    assert_eq!(app.hosts[0].to_string(), format!("{}.localhost", app.name));

    fs::write(dir.path().join(CONTRACT), written.replace("after = \"5m\"", "after = \"9m\""))
        .unwrap();
    fs::write(&config, "# mine\n[apps]\ndir = \"others\"\n").unwrap();
    init(dir.path(), Some(&config), None, true).unwrap();
    assert!(read(&dir.path().join(CONTRACT)).contains("9m") && read(&config).starts_with("# mine"));
    let others = edge.path().join("conf/others");
    assert_eq!(
        fs::read_dir(others).unwrap().count(),
        1,
        "the operator's file is where the apps' are"
    );
    let inside =
        init(dir.path(), Some(&dir.path().join("conf/edge.toml")), None, true).unwrap_err();
    assert!(inside.to_string().contains("would go into the artifact"), "{inside}");
}
