# shellcheck shell=bash
# Assembles the sample app's artifact directory. Sourced from the project's root.

# studylab_artifact DIR: the app's contract and files, and its binary, as `deploy` wants them.
studylab_artifact() {
  mkdir -p "$1"
  cp -R examples/studylab/app/. "$1/"
  cp "$(bin studylab)" "$1/studylab"
  # Debug information is of no use to an artifact.
  strip --strip-debug "$1/studylab" 2>/dev/null || true
}
