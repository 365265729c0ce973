package launcher;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.ServerSocket;
import java.net.Socket;
import java.security.GeneralSecurityException;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.function.IntPredicate;

/**
 * The launcher's communication port, on which the gateway sends signals to the kernel.
 *
 * <p>Without a secret a connection carries one JSON object, {@code {"signum": 2}} or {@code {"shutdown": 1}}, and
 * there is no response. With one, {@link CommSession} authenticates every command. Anything else is discarded, because
 * the port must outlive port scans and health probes.
 */
final class CommListener {
    private static final System.Logger LOG = System.getLogger("launcher");
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final int MAX_CONNECTIONS = 32;

    private final ServerSocket socket;
    private final byte[] key;
    private final IntPredicate signals;
    private final ThreadPoolExecutor workers;

    /**
     * Serves a bound socket.
     *
     * @param secret the launch's secret, or null to speak version 1
     * @param signals delivers a signal number; returns whether it may be sent
     */
    CommListener(ServerSocket socket, byte[] secret, IntPredicate signals) throws GeneralSecurityException {
        this.socket = socket;
        this.key = secret == null ? null : Payload.hmac(secret, Payload.ascii("EG-comm-v2"));
        this.signals = signals;
        ThreadFactory daemons = task -> {
            Thread thread = new Thread(task, "launcher-comm");
            thread.setDaemon(true);
            return thread;
        };
        workers = new ThreadPoolExecutor(1, MAX_CONNECTIONS, 30, TimeUnit.SECONDS, new SynchronousQueue<>(), daemons);
    }

    /** Accepts clients until a shutdown command closes the port; the thread does not keep the JVM alive. */
    void start() {
        Thread thread = new Thread(this::accept, "launcher-listener");
        thread.setDaemon(true);
        thread.start();
    }

    private void accept() {
        while (!socket.isClosed()) {
            try {
                Socket caller = socket.accept();
                try {
                    workers.execute(() -> serve(caller));
                } catch (RejectedExecutionException e) {
                    caller.close();
                }
            } catch (IOException e) {
                if (!socket.isClosed()) {
                    LOG.log(System.Logger.Level.WARNING, "Communication port: {0}", e.getMessage());
                }
            }
        }
    }

    private void serve(Socket caller) {
        try (caller) {
            if (key == null) {
                obey(new LimitedReader(caller).readAll());
            } else {
                new CommSession(caller, key, this::obey).run();
            }
        } catch (IOException | GeneralSecurityException e) {
            LOG.log(System.Logger.Level.DEBUG, "Communication port: dropped a caller: {0}", e.getMessage());
        }
    }

    /** Carries out one command; returns an error, or null on success. */
    private String obey(String command) {
        JsonNode request;
        try {
            request = JSON.readTree(command);
        } catch (JsonProcessingException e) {
            return "not JSON";
        }
        JsonNode signum = request.path("signum");
        JsonNode shutdown = request.path("shutdown");
        if (!signum.isInt() && !shutdown.isInt()) {
            return "neither signum nor shutdown";
        }
        if (signum.isInt() && !signals.test(signum.intValue())) {
            return "signal not allowed";
        }
        if (shutdown.isInt() && shutdown.intValue() == 1) {
            close();
        }
        return null;
    }

    private void close() {
        try {
            socket.close();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
