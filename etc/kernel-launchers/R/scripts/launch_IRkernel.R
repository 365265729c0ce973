# eg-payload-version: 2
# Starts an R kernel (IRkernel) for the gateway.
#
# R itself has no cryptography and no threads, so a Python helper, server_listener.py next to this file, chooses the
# ports, writes the connection file, reports to the gateway and receives its signals until this process ends.
# It needs Python 3 with pycryptodomex. R needs IRkernel and its dependencies; SparkR only if Spark is requested.
#
# Options, with or without "RemoteProcessProxy." in front of the first five names:
#   --kernel-id ID --public-key KEY --response-address IP:PORT --port-range L..U
#   --spark-context-initialization-mode none|lazy|eager --customAppName NAME

local({
  OLD_PREFIX <- "RemoteProcessProxy."
  HELPER <- "server_listener.py"
  HELPER_SECONDS <- 45 # the helper itself retries for 30 seconds to reach the gateway

  say <- function(...) message("[R launcher] ", ...)

  give_up <- function(...) {
    say(...)
    quit(save = "no", status = 1L)
  }

  # A value may be absent, follow as the next argument or after "="; the new spelling takes precedence.
  # An argument without leading dashes is the connection file (deprecated).
  parse_options <- function(args) {
    old <- list()
    new <- list()
    while (length(args) > 0) {
      argument <- args[[1]]
      args <- args[-1]
      if (!startsWith(argument, "--")) {
        if (nzchar(argument)) new[["connection-file"]] <- argument
        next
      }
      name <- sub("=.*", "", substring(argument, 3))
      value <- ""
      if (grepl("=", argument, fixed = TRUE)) {
        value <- sub("[^=]*=", "", argument)
      } else if (length(args) > 0 && !startsWith(args[[1]], "--")) {
        value <- args[[1]]
        args <- args[-1]
      }
      if (!nzchar(value)) next
      if (startsWith(name, OLD_PREFIX)) old[[substring(name, nchar(OLD_PREFIX) + 1)]] <- value else new[[name]] <- value
    }
    utils::modifyList(old, new)
  }

  option <- function(options, name, otherwise = "") if (is.null(options[[name]])) otherwise else options[[name]]

  script_directory <- function() {
    script <- grep("^--file=", commandArgs(trailingOnly = FALSE), value = TRUE)
    if (length(script) == 0) getwd() else dirname(normalizePath(sub("^--file=", "", script[[1]])))
  }

  find_python <- function() {
    candidates <- Sys.which(c(Sys.getenv("PYSPARK_PYTHON"), "python3", "python"))
    found <- candidates[nzchar(candidates)]
    if (length(found) == 0) give_up("no Python found for ", HELPER, "; set PYSPARK_PYTHON")
    found[[1]]
  }

  connection_file <- function(options) {
    wanted <- option(options, "connection-file")
    if (nzchar(wanted) && dir.exists(dirname(wanted))) return(wanted)
    tempfile(paste0("kernel-", basename(options[["kernel-id"]]), "_"), fileext = ".json")
  }

  # Starts the helper in the background and returns its process id.
  start_helper <- function(options, file) {
    script <- file.path(script_directory(), HELPER)
    if (!file.exists(script)) give_up(script, " is missing")
    arguments <- c(
      find_python(), script, "--listener-only", "--parent-pid", Sys.getpid(), "--connection-file", file,
      unlist(lapply(
        c("kernel-id", "public-key", "response-address", "port-range"),
        function(name) if (is.null(options[[name]])) NULL else c(paste0("--", name), options[[name]])
      ))
    )
    # With its output on stderr, the helper does not keep open the pipe that delivers its process id.
    command <- paste(c(vapply(as.character(arguments), shQuote, ""), ">&2 & echo $!"), collapse = " ")
    as.integer(system(command, intern = TRUE))
  }

  is_complete <- function(file) {
    file.exists(file) && isTRUE(jsonlite::validate(paste(readLines(file, warn = FALSE), collapse = "\n")))
  }

  wait_for_file <- function(file, helper) {
    deadline <- proc.time()[["elapsed"]] + HELPER_SECONDS
    repeat {
      # Checked before the file, because without a response address the helper ends after writing the file.
      alive <- tools::pskill(helper, 0L)
      if (is_complete(file)) return(invisible())
      if (!alive) give_up(HELPER, " ended without writing the connection file; its messages are above")
      if (proc.time()[["elapsed"]] > deadline) {
        tools::pskill(helper)
        give_up(HELPER, " has not written the connection file within ", HELPER_SECONDS, " seconds")
      }
      Sys.sleep(0.02)
    }
  }

  start_session <- function(app_name) {
    spark <- SparkR::sparkR.session(appName = app_name, sparkConfig = list(spark.app.name = app_name))
    session <<- list(
      spark = spark,
      sc = SparkR:::callJStatic("org.apache.spark.sql.api.r.SQLUtils", "getJavaSparkContext", spark),
      sqlContext = spark
    )
    session
  }

  # Gives cells spark, sc and sqlContext: at once (eager) or when one of them is first used (lazy).
  prepare_spark <- function(mode, app_name) {
    if (mode == "none") return(invisible())
    if (!mode %in% c("lazy", "eager")) give_up("unknown Spark context initialization mode '", mode, "'")
    if (!requireNamespace("SparkR", quietly = TRUE)) {
      say("SparkR is not installed: the kernel starts without Spark")
      return(invisible())
    }
    suppressPackageStartupMessages(library("SparkR", character.only = TRUE))
    if (mode == "eager") start_session(app_name)
    for (name in c("spark", "sc", "sqlContext")) {
      eval(bquote(delayedAssign(
        .(name), (if (is.null(session)) start_session(.(app_name)) else session)[[.(name)]],
        assign.env = globalenv()
      )))
    }
  }

  session <- NULL
  options <- parse_options(commandArgs(trailingOnly = TRUE))
  for (required in c("kernel-id", "public-key")) {
    if (is.null(options[[required]])) give_up("--", required, " is required")
  }
  file <- connection_file(options)
  launcher <- environment()
  # At a shutdown request the kernel ends the process itself, so code after main() may never run.
  reg.finalizer(launcher, function(launcher) {
    unlink(launcher$file)
    if (!is.null(launcher$session)) try(SparkR::sparkR.session.stop(), silent = TRUE)
  }, onexit = TRUE)

  helper <- start_helper(options, file)
  # The helper has its own copy; cells and their children must not see it.
  Sys.unsetenv("EG_LAUNCH_SECRET")
  wait_for_file(file, helper)
  prepare_spark(
    tolower(option(options, "spark-context-initialization-mode", "none")),
    option(options, "customAppName", options[["kernel-id"]])
  )
  IRkernel::main(file)
})
