//! Apps of Node: frameworks that have their own way to be started, then the script `start`, then a file.

use serde_json::Value;

use super::folder::Folder;
use super::found::{Assets, Found, site_in};

pub fn look(folder: &Folder) -> Option<Found> {
    let package = folder.json("package.json")?;
    let has = |name: &str| {
        let of = |key: &str| package.get(key).and_then(|all| all.get(name)).is_some();
        of("dependencies") || of("devDependencies")
    };
    let found = framework(folder, &package, &has).or_else(|| script(folder, &package))?;
    Some(prepared(folder, &package, found))
}

/// What has to be run before a deploy: an install, and a build where there is one.
fn prepared(folder: &Folder, package: &Value, mut found: Found) -> Found {
    let (install, run) =
        match folder.first(&["pnpm-lock.yaml", "yarn.lock", "bun.lock", "package-lock.json"]) {
            Some("pnpm-lock.yaml") => ("pnpm install --frozen-lockfile", "pnpm run build"),
            Some("yarn.lock") => ("yarn install --frozen-lockfile", "yarn build"),
            Some("bun.lock") => ("bun install --frozen-lockfile", "bun run build"),
            Some(_) => ("npm ci", "npm run build"),
            None => ("npm install", "npm run build"),
        };
    let depends = ["dependencies", "devDependencies"]
        .iter()
        .any(|key| package.get(key).and_then(Value::as_object).is_some_and(|all| !all.is_empty()));
    if package.get("scripts").and_then(|s| s.get("build")).is_some() {
        found.before.insert(0, run.to_owned());
    }
    if depends && !folder.has_dir("node_modules") {
        found.before.insert(0, install.to_owned());
    }
    found
}

fn framework(folder: &Folder, package: &Value, has: &dyn Fn(&str) -> bool) -> Option<Found> {
    let assets = |dir: &str, prefix: &str, about: &str| {
        Some(Assets {
            dir: dir.into(),
            prefix: prefix.into(),
            manifest: None,
            immutable: vec!["*".into()],
            about: about.into(),
            ..Assets::default()
        })
    };
    if has("next") {
        let next = "node_modules/next/dist/bin/next";
        let found = Found::new(
            "a Next.js app, served by `next start`",
            &["node", next, "start", "--hostname", "127.0.0.1", "--port", "$PORT"],
        );
        let config = ["next.config.js", "next.config.mjs", "next.config.ts"];
        let config: String = config.iter().map(|file| folder.text(file)).collect();
        if config.contains("output:") && config.contains("export") {
            let site = site(folder, "out", "a Next.js app that is exported", &["_next/static/*"]);
            return Some(match config.contains("trailingSlash") {
                true => site,
                // /about is about/index.html, and not about.html.
                false => site.note(
                    "add `trailingSlash: true` to Next's configuration, so that /about is a page",
                ),
            });
        }
        let about = "What `next build` names by its content";
        return Some(
            found
                .env("NODE_ENV", "production")
                .env("NEXT_TELEMETRY_DISABLED", "1")
                .writes("Next's cache of pages and images")
                .assets(assets(".next/static", "/_next/static/", about)),
        );
    }
    if has("nuxt") {
        let found = Found::new("a Nuxt app", &["node", ".output/server/index.mjs"]);
        let about = "What `nuxt build` names by its content";
        return Some(found.assets(assets(".output/public/_nuxt", "/_nuxt/", about)));
    }
    if has("@sveltejs/adapter-node") {
        let found = Found::new("a SvelteKit app (adapter-node)", &["node", "build"]);
        let found = found
            .env("ADDRESS_HEADER", "x-forwarded-for")
            .env("PROTOCOL_HEADER", "x-forwarded-proto");
        let about = "What `vite build` names by its content";
        let dir = "build/client/_app/immutable";
        return Some(found.env("HOST_HEADER", "x-forwarded-host").assets(assets(
            dir,
            "/_app/immutable/",
            about,
        )));
    }
    if has("@astrojs/node") {
        return Some(Found::new(
            "an Astro app (@astrojs/node)",
            &["node", "dist/server/entry.mjs"],
        ));
    }
    for (name, program) in
        [("@react-router/serve", "react-router-serve"), ("@remix-run/serve", "remix-serve")]
    {
        if has(name) {
            let program = format!("node_modules/.bin/{program}");
            let found = Found::new(
                format!("an app served by {name}"),
                &["node", &program, "build/server/index.js"],
            );
            let about = "What `vite build` names by its content";
            return Some(found.assets(assets("build/client/assets", "/assets/", about)));
        }
    }
    if has("@nestjs/core") {
        return Some(Found::new("a Nest app", &["node", "dist/main.js"]).about(READS_PORT));
    }
    let starts = package.get("scripts").and_then(|s| s.get("start")).is_some();
    if has("vite") && !starts && main_file(folder, package).is_none() {
        let hashed = ["assets/*-*.js", "assets/*-*.css"];
        return Some(pages_by_script(site(folder, "dist", "a site built by Vite", &hashed)));
    }
    if has("react-scripts") {
        let what = "a site built by react-scripts";
        return Some(pages_by_script(site(folder, "build", what, &["static/*"])));
    }
    None
}

/// A site whose build names some files by their content.
fn site(folder: &Folder, dir: &str, what: &str, immutable: &[&str]) -> Found {
    let mut found = site_in(folder, dir, what);
    if let Some(assets) = &mut found.assets {
        assets.immutable = immutable.iter().map(|name| (*name).to_owned()).collect();
    }
    found
}

/// One whose pages are made in the browser, as its own preview answers them.
fn pages_by_script(mut found: Found) -> Found {
    if let Some(assets) = &mut found.assets {
        assets.fallback = Some("index.html".into());
    }
    found
}

const READS_PORT: &str = "It has to listen on process.env.PORT.";

fn script(folder: &Folder, package: &Value) -> Option<Found> {
    let start = package.get("scripts").and_then(|s| s.get("start")).and_then(Value::as_str);
    let words: Vec<&str> = start.map(|s| s.split_whitespace().collect()).unwrap_or_default();
    let plain = words
        .iter()
        .all(|word| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:@=,".contains(&b)));
    let found = match (&words[..], main_file(folder, package)) {
        // Without npm between: a signal reaches it, and it starts sooner.
        (["node", rest @ ..], _) if plain && !rest.is_empty() => {
            let what = format!("a Node app (`{}` of package.json)", words.join(" "));
            Found::new(what, &words)
        }
        ([_, ..], _) => Found::new(
            "a Node app (the script `start` of package.json)",
            &["npm", "run", "--silent", "start"],
        ),
        ([], Some(file)) => Found::new(format!("a Node app ({file})"), &["node", &file]),
        ([], None) => return None,
    };
    let file = found.command.last().filter(|last| folder.has(last)).cloned();
    let found = found.env("NODE_ENV", "production");
    Some(match file {
        Some(file) if !folder.text(&file).contains("PORT") => found.note(format!(
            "{file} does not read PORT: let it listen on process.env.PORT, as in `app.listen(process.env.PORT)`"
        )),
        _ => found.about(READS_PORT),
    })
}

fn main_file(folder: &Folder, package: &Value) -> Option<String> {
    let main = package.get("main").and_then(Value::as_str).map(|m| m.trim_start_matches("./"));
    let main = main.filter(|main| folder.has(main));
    let usual =
        folder.first(&["server.js", "index.js", "app.js", "server.mjs", "index.mjs", "main.js"]);
    main.or(usual).map(str::to_owned)
}
