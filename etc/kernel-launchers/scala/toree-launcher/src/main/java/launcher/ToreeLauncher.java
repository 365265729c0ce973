package launcher;

import java.io.IOException;
import java.lang.reflect.InvocationTargetException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.security.GeneralSecurityException;
import java.util.List;
import java.util.concurrent.TimeUnit;

/**
 * Starts an Apache Toree kernel for the gateway.
 *
 * <p>Chooses the kernel's ports, reports them to the gateway's response address, serves the communication port and
 * hands over to Toree.
 */
public final class ToreeLauncher {
    private static final System.Logger LOG = System.getLogger("launcher");
    private static final String TOREE = "org.apache.toree.Main";
    private static final int REPORT_SECONDS = 30;

    private ToreeLauncher() {}

    /** Entry point for {@code spark-submit --class launcher.ToreeLauncher}. */
    public static void main(String[] args) throws Exception {
        try {
            LauncherOptions options = LauncherOptions.parse(args);
            byte[] secret = LaunchSecret.read(options.secretOnInput(), System.in, System.getenv());
            runToree(prepare(options, secret));
        } catch (IllegalArgumentException | IOException | GeneralSecurityException e) {
            System.err.println("Toree launcher: " + e.getMessage());
            System.exit(-1);
        }
    }

    /** Writes the connection file, reports it, and returns Toree's arguments. */
    private static List<String> prepare(LauncherOptions options, byte[] secret)
            throws IOException, GeneralSecurityException, InterruptedException {
        Payload payload = new Payload(options.kernelId(), options.publicKey());
        ConnectionProfile profile = ConnectionProfile.open(options.profile(), options.portRange());
        Runtime.getRuntime().addShutdownHook(new Thread(profile::delete, "launcher-profile"));
        InetSocketAddress gateway = address(options.responseAddress());
        if (gateway == null) {
            LOG.log(System.Logger.Level.INFO, "No response address: connection file is {0}", profile.path());
            return options.toreeArguments(profile.path());
        }
        KernelSignals signals = new KernelSignals(options.alternateSigint(), profile::delete);
        ServerSocket commPort = options.portRange().bind();
        new CommListener(commPort, secret, signals::deliver).start();
        byte[] message = payload.encode(
                profile.report(options.kernelId(), commPort.getLocalPort(), secret != null), secret);
        send(message, gateway);
        LOG.log(System.Logger.Level.INFO, "Connection information sent to {0}", gateway);
        return options.toreeArguments(profile.path());
    }

    /** Reads {@code ip:port} or {@code [ipv6]:port}; null if it is neither. */
    static InetSocketAddress address(String text) {
        int colon = text.lastIndexOf(':');
        if (colon < 1 || !text.substring(colon + 1).matches("[0-9]{1,5}")) {
            return null;
        }
        int port = Integer.parseInt(text.substring(colon + 1));
        String host = text.substring(0, colon);
        if (host.startsWith("[") && host.endsWith("]")) {
            host = host.substring(1, host.length() - 1);
        }
        return port < 1 || port > 65535 ? null : new InetSocketAddress(host, port);
    }

    /** Delivers the message, with retries, because a new container's network may need some seconds. */
    private static void send(byte[] message, InetSocketAddress gateway) throws IOException, InterruptedException {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(REPORT_SECONDS);
        long pauseMillis = 100;
        while (true) {
            try {
                sendOnce(message, gateway);
                return;
            } catch (IOException e) {
                if (System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(pauseMillis) > deadline) {
                    throw new IOException("cannot report to the gateway at " + gateway + ": " + e.getMessage(), e);
                }
                LOG.log(
                        System.Logger.Level.WARNING,
                        "Reporting to the gateway failed, trying again: {0}",
                        e.getMessage());
            }
            Thread.sleep(pauseMillis);
            pauseMillis = Math.min(2 * pauseMillis, 2000);
        }
    }

    private static void sendOnce(byte[] message, InetSocketAddress gateway) throws IOException {
        try (Socket socket = new Socket()) {
            socket.connect(gateway, 5000);
            socket.getOutputStream().write(message);
            socket.shutdownOutput();
            socket.setSoTimeout(2000);
            awaitClose(socket);
        }
    }

    /** The gateway closes after it has read everything; a reset means that it has not. */
    private static void awaitClose(Socket socket) throws IOException {
        try {
            socket.getInputStream().read();
        } catch (SocketTimeoutException e) {
            LOG.log(System.Logger.Level.DEBUG, "The gateway keeps the connection open");
        }
    }

    /** Calls Toree through the class loader that spark-submit filled with its {@code --jars}. */
    private static void runToree(List<String> arguments) throws ReflectiveOperationException {
        ClassLoader loader = Thread.currentThread().getContextClassLoader();
        Object[] call = {arguments.toArray(new String[0])};
        try {
            Class.forName(TOREE, true, loader).getMethod("main", String[].class).invoke(null, call);
        } catch (InvocationTargetException e) {
            LOG.log(System.Logger.Level.ERROR, "Toree failed", e.getCause());
            System.exit(1);
        } catch (ClassNotFoundException e) {
            System.err.println("Toree launcher: toree-assembly is missing from --jars");
            System.exit(1);
        }
    }
}
