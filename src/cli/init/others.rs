//! Vango, Go, Rust, Ruby, PHP, what a Procfile or a Dockerfile says, and sites without a program.

use super::folder::{Folder, is_installed, place_of};
use super::found::{Assets, Found, site_in};
use super::python;
use crate::contract::procfile;

/// The folder and what it is: the first that knows it.
pub fn look(folder: &Folder) -> Option<Found> {
    go(folder)
        .or_else(|| rust(folder))
        .or_else(|| ruby(folder))
        .or_else(|| php(folder))
        .or_else(|| dockerfile(folder))
        .or_else(|| static_site(folder))
}

/// The line `web` of a Procfile, where it is simple: as a command of its own.
pub fn procfile(folder: &Folder) -> Option<Found> {
    let text = folder.text("Procfile");
    let command = procfile::web(&text).ok().flatten()?;
    let line = command.last()?.clone();
    let mut found = Found::new("an app with a Procfile, whose line `web` is the command", &[]);
    let words: Vec<&str> = line.split_whitespace().collect();
    let plain = line.chars().all(|c| c.is_ascii_alphanumeric() || " -_./:@=,${}+[]".contains(c))
        && !line.contains("$(")
        && !line.contains(":-")
        && words.first().is_some_and(|first| !first.contains('='));
    found.command = match words.first() {
        Some(program) if plain => {
            // Scripts in a virtual environment name the folder it was made in.
            let module =
                ["gunicorn", "uvicorn", "hypercorn", "daphne", "flask", "streamlit", "waitress"];
            let by_name = module.contains(program);
            let before: &[&str] = if by_name { &["python", "-m"] } else { &[] };
            before.iter().chain(&words).map(|word| (*word).to_owned()).collect()
        }
        _ => command,
    };
    let others: Vec<&str> =
        procfile::processes(&text).map(|(name, _)| name).filter(|name| *name != "web").collect();
    if !others.is_empty() {
        found =
            found.note(format!("the Procfile's other lines are not run: {}", others.join(", ")));
    }
    // What its language needs.
    if let Some(of_language) = python::look(folder).or_else(|| super::node::look(folder)) {
        found.path = of_language.path;
        found.before = of_language.before;
        found.assets = of_language.assets;
        found.writes = of_language.writes;
    }
    if found.path.is_empty()
        && let Some(first) = found.command.first_mut().filter(|first| *first == "python")
    {
        *first = "python3".into();
    }
    Some(found)
}

fn go(folder: &Folder) -> Option<Found> {
    if !folder.has("go.mod") {
        return None;
    }
    let module = folder.text("go.mod");
    let module_name = module.lines().find_map(|l| l.strip_prefix("module "))?.trim().to_owned();
    let name = module_name.rsplit('/').next().unwrap_or("app").to_owned();
    let binary = if folder.has_dir(&name) { format!("{name}-server") } else { name };
    let is_main = |dir: &str| {
        folder
            .files(dir, "go")
            .iter()
            .any(|f| folder.text(f).lines().any(|l| l.trim() == "package main"))
    };
    let commands = std::fs::read_dir(folder.path("cmd")).into_iter().flatten().flatten();
    let mut commands: Vec<String> =
        commands.filter_map(|e| Some(format!("cmd/{}", e.file_name().to_str()?))).collect();
    commands.sort();
    let package = match is_main("") {
        true => ".".to_owned(),
        false => format!("./{}", commands.into_iter().find(|dir| is_main(dir))?),
    };
    let command = format!("./{binary}");
    let build = format!("CGO_ENABLED=0 go build -o {binary} {package}");
    if module.contains("github.com/vango-go/vango") || module.contains("github.com/vango-dev/vango")
    {
        return Some(vango(folder, &command, build));
    }
    let reads = folder.files(package.trim_start_matches("./").trim_start_matches('.'), "go");
    let found = Found::new(format!("a program in Go ({module_name})"), &[&command]);
    let found = found
        .about("It is built before the deploy, and has to listen on os.Getenv(\"PORT\").")
        .before(build);
    Some(match reads.iter().any(|file| folder.text(file).contains("PORT")) {
        true => found,
        false => found.note(
            "no file of its main package reads PORT: let it listen on \"127.0.0.1:\" + os.Getenv(\"PORT\")",
        ),
    })
}

fn vango(folder: &Folder, command: &str, build: String) -> Found {
    let mut found = Found::new("a Vango app", &[command]).before(build);
    found.tables.push(
        "# Its pages are driven over a socket; a tab that comes back is brought to the process that has its session.\n\
         [[route]]\npath = \"/_vango/live\"\nclass = \"live\"\nsession = [\"vango-hello\"]"
            .into(),
    );
    if folder.has("vango_state_schema.json") {
        found.tables.push(
            "# Which sessions' states this version reads.\n[state]\nschema_file = \"vango_state_schema.json\"".into(),
        );
    }
    let dir =
        ["dist", "public"].into_iter().find(|dir| folder.has(&format!("{dir}/manifest.json")));
    found.assets(dir.map(|dir| Assets {
        dir: dir.into(),
        prefix: "/assets/".into(),
        manifest: Some(format!("{dir}/manifest.json")),
        about: "Static files, whose manifest says which names carry a hash".into(),
        ..Assets::default()
    }))
}

fn rust(folder: &Folder) -> Option<Found> {
    let manifest: toml::Table = folder.text("Cargo.toml").parse().ok()?;
    let name = manifest.get("package")?.get("name")?.as_str()?;
    if !folder.has("src/main.rs") {
        return None;
    }
    let found =
        Found::new(format!("a program in Rust ({name})"), &[&format!("./target/release/{name}")]);
    Some(
        found
            .about("It is built before the deploy, and has to listen on 127.0.0.1 and the port in PORT.")
            .before("cargo build --release"),
    )
}

fn ruby(folder: &Folder) -> Option<Found> {
    let gems = folder.text("Gemfile");
    let is_rails = folder.has("config/application.rb");
    if gems.is_empty() && !folder.has("config.ru") {
        return None;
    }
    let mut found = if is_rails {
        let command = ["bundle", "exec", "rails", "server", "-b", "127.0.0.1", "-p", "$PORT"];
        let found = Found::new("a Rails app", &command)
            .env("RAILS_ENV", "production")
            .env("RAILS_LOG_TO_STDOUT", "1")
            .writes("log/, tmp/ and storage/");
        let mut found = found.before("bundle exec rails assets:precompile");
        found.ready =
            folder.text("config/routes.rb").contains("rails/health").then(|| "/up".to_owned());
        if folder.has("config/credentials.yml.enc") {
            found.secrets.push("RAILS_MASTER_KEY".into());
        }
        found
    } else if folder.has("config.ru") {
        let command = if gems.contains("puma") {
            vec!["bundle", "exec", "puma", "-b", "tcp://127.0.0.1:$PORT"]
        } else {
            vec!["bundle", "exec", "rackup", "-o", "127.0.0.1", "-p", "$PORT"]
        };
        Found::new("a Rack app (config.ru)", &command)
    } else {
        let file = folder.first(&["app.rb", "server.rb", "main.rb"])?;
        Found::new(
            format!("a program in Ruby ({file})"),
            &["bundle", "exec", "ruby", file, "-p", "$PORT"],
        )
    };
    if gems.is_empty() {
        found.command.drain(..2);
    } else if !folder.has_dir("vendor/bundle") {
        found
            .before
            .insert(0, "bundle config set --local path vendor/bundle && bundle install".into());
    }
    Some(found)
}

fn php(folder: &Folder) -> Option<Found> {
    let root = ["public", "web", "htdocs", "."]
        .into_iter()
        .find(|dir| folder.has(&format!("{dir}/index.php")))?;
    let mut found = if folder.has("artisan") {
        let command =
            ["php", "artisan", "serve", "--host=127.0.0.1", "--port=$PORT", "--no-reload"];
        let mut found =
            Found::new("a Laravel app", &command).writes("storage/ and bootstrap/cache/");
        found.secrets.push("APP_KEY".into());
        found
    } else {
        let command = ["php", "-S", "127.0.0.1:$PORT", "-t", root];
        let what = if root == "." { "index.php".to_owned() } else { format!("{root}/index.php") };
        Found::new(format!("an app in PHP ({what}), served by PHP's own server"), &command)
    };
    found = found.env("PHP_CLI_SERVER_WORKERS", "4");
    if folder.has("composer.json") && !folder.has_dir("vendor") {
        found = found.before("composer install --no-dev");
    }
    Some(found)
}

/// The command of an image: its paths are those of the image, so a person has to look at it.
fn dockerfile(folder: &Folder) -> Option<Found> {
    let text = folder.text("Dockerfile").replace("\\\n", " ");
    let last = |word: &str| {
        let of = text.lines().filter_map(|line| line.trim().strip_prefix(word)?.strip_prefix(' '));
        of.map(str::trim).next_back().map(str::to_owned)
    };
    let words = |line: String| match serde_json::from_str::<Vec<String>>(&line) {
        Ok(words) => words,
        Err(_) => ["sh", "-c", &line].map(str::to_owned).into(),
    };
    let (entry, command) = (last("ENTRYPOINT").map(words), last("CMD").map(words));
    let port = last("EXPOSE");
    let port = port.as_deref().map(|p| p.split(['/', ' ']).next().unwrap_or_default().to_owned());
    let mut all: Vec<String> = entry.into_iter().chain(command).flatten().collect();
    if all.is_empty() {
        return None;
    }
    let shell = all[0] == "sh" && all.get(1).is_some_and(|flag| flag == "-c");
    if let Some(port) = port.filter(|port| port.len() > 1) {
        for word in &mut all {
            let parts: Vec<&str> = word.split(&*port).collect();
            *word = parts.join("$PORT");
        }
    }
    if !shell {
        for word in all.iter_mut().filter(|word| word.contains('$') && !word.contains("$PORT")) {
            *word = word.replace('$', "$$");
        }
    }
    let mut found = Found::new("what its Dockerfile runs", &[]);
    found.command = all;
    Some(
        found
            .about("From CMD and ENTRYPOINT of the Dockerfile. No image is built: what it installs has to be in this")
            .about("folder or on the machine, and its paths are those of this folder.")
            .note("the Dockerfile is not built: look at the command, and put what it needs into the folder"),
    )
}

fn static_site(folder: &Folder) -> Option<Found> {
    let of_hugo = ["hugo.toml", "hugo.yaml", "hugo.json"];
    if folder.first(&of_hugo).is_some() {
        return Some(site_in(folder, "public", "a site made by Hugo").before("hugo"));
    }
    let dir = ["public", "dist", "build", "out", "_site", "site", "www", "."];
    let dir = dir.into_iter().find(|dir| folder.has(&format!("{dir}/index.html")))?;
    let found = site_in(folder, dir, "a site of static files");
    Some(match dir {
        "." => found.note(
            "every file of this folder is answered, but for the contract and names that begin with a dot: what is \
             not for everybody belongs elsewhere, or name a directory as `dir`",
        ),
        _ => found,
    })
}

/// Where the program of a command is, if an app would not find it: a folder of the user's own PATH.
pub fn elsewhere(found: &Found, path: &str) -> Option<std::path::PathBuf> {
    let program = found.command.first()?;
    if program.contains('/') || program == "python" || is_installed(program) {
        return None;
    }
    place_of(program, path)
}
