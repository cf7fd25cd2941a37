// A server whose router folds as Express does without options: case, one slash at the end, and parameters
// of a route decoded.
import http from "node:http";

const routes = [
  [/^\/webhooks\/stripe\/?$/i, "stripe"],
  [/^\/actions\/([^/]+?)\/?$/i, "action"],
];

http
  .createServer((req, res) => {
    const path = req.url.split("?")[0];
    const took = req.method === "POST" && routes.find(([pattern]) => pattern.test(path));
    res.writeHead(took ? 200 : 404).end(took ? `took ${took[1]}` : "a page");
  })
  .listen(Number(process.argv[2]), "127.0.0.1");
