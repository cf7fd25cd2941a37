//! What people deploy: links, caches beside the code, a second deploy.
