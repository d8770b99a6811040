import java.io.InputStream;
import java.net.Socket;
import java.net.URI;

/** One GET: Look HOST PORT socket|url. */
public class Look {
    public static void main(String[] words) throws Exception {
        String host = words[0];
        int port = Integer.parseInt(words[1]);
        if (words[2].equals("socket")) {
            try (Socket socket = new Socket(host, port)) {
                socket.setSoTimeout(10000);
                socket.getOutputStream().write(("GET / HTTP/1.0\r\nHost: " + host + "\r\n\r\n").getBytes());
                String answer = new String(socket.getInputStream().readAllBytes());
                System.out.println(answer.substring(answer.indexOf("\r\n\r\n") + 4));
            }
        } else {
            try (InputStream answer = URI.create("http://" + host + ":" + port + "/").toURL().openStream()) {
                System.out.println(new String(answer.readAllBytes()));
            }
        }
    }
}
